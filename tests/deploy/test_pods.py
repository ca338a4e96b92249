"""What every pod must have, over every overlay."""

import tomllib

import pytest

from tests.deploy.manifests import ROOT, SERVICES, Manifest, Manifests

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_namespace_enforces_restricted_pods(manifests: Manifests) -> None:
    [namespace] = manifests.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for manifest in manifests.all:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace["metadata"]["name"], manifest["metadata"]["name"]


def test_pods_are_what_restricted_asks_for(manifests: Manifests) -> None:
    for pod in manifests.pods:
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True, pod.name
        assert security["runAsUser"] > 0, pod.name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.name
        for volume in pod.spec.get("volumes", []):
            kinds = volume.keys() - {"name"}
            assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}, (pod.name, volume["name"])


def test_containers_can_do_nothing_but_their_work(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, container["name"]
            assert security["readOnlyRootFilesystem"] is True, container["name"]
            assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]


def test_no_pod_has_the_cluster_s_credentials_but_the_one_that_restarts(manifests: Manifests) -> None:
    for pod in manifests.pods:
        if pod.name != "renewal":
            assert pod.spec["automountServiceAccountToken"] is False, pod.name


def test_no_service_s_variables_are_taken_for_settings(manifests: Manifests) -> None:
    assert all(pod.spec["enableServiceLinks"] is False for pod in manifests.pods)


def test_images_have_versions(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            name, _, tag = container["image"].partition(":")
            assert tag, f"{container['image']} would be latest"
            assert tag != "latest"
            if name.startswith("structkv-"):
                assert tag == VERSION


def test_containers_say_what_they_need(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), (pod.name, container["name"])
            assert "memory" in resources["limits"], (pod.name, container["name"])


def test_containers_that_serve_have_all_probes_and_a_word_before_the_end(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.spec["containers"] if pod.serves else []:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert probe in container, (pod.name, container["name"], probe)
            assert "preStop" in container["lifecycle"], (pod.name, container["name"])


@pytest.mark.parametrize("service", SERVICES)
def test_slow_loads_are_waited_for(manifests: Manifests, service: str) -> None:
    probe = manifests.pod(service).spec["containers"][0]["startupProbe"]
    seconds = probe["periodSeconds"] * probe["failureThreshold"]
    assert seconds >= (180 if service == "gateway" else 1800)
    fetching = 1800
    assert manifests.get("Deployment", service)["spec"]["progressDeadlineSeconds"] >= fetching + seconds


def test_a_gateway_s_readiness_is_not_its_workers(manifests: Manifests) -> None:
    probe = manifests.pod("gateway").spec["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] == "/ready?workers=false", "without workers it answers, and a draining one goes"


def test_what_ends_badly_leaves_its_last_words(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", (pod.name, container["name"])


def test_probes_knock_where_something_listens(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                for how in ("httpGet", "grpc", "tcpSocket"):
                    if how in probe:
                        port = probe[how]["port"]
                        assert port in ports or port in ports.values(), (pod.name, kind)


def test_workers_with_certificates_are_not_asked_in_plain_text(manifests: Manifests) -> None:
    for service in ("prefill", "decode"):
        pod = manifests.pod(service)
        [container] = pod.spec["containers"]
        with_tls = "STRUCTKV_TLS_CERT" in manifests.environment(pod, container)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if with_tls:
                assert container[kind]["exec"]["command"] == ["structkv", "probe", "127.0.0.1:50051"]
            else:
                assert container[kind]["grpc"] == {"port": 50051}


def test_what_serves_is_spread_and_not_evicted_at_once(manifests: Manifests) -> None:
    for pod in manifests.pods:
        if not pod.serves:
            continue
        keys = {constraint["topologyKey"] for constraint in pod.spec["topologySpreadConstraints"]}
        assert "kubernetes.io/hostname" in keys, pod.name
        budgets = [budget["spec"] for budget in manifests.of("PodDisruptionBudget")]
        [budget] = [budget for budget in budgets if budget["selector"]["matchLabels"].items() <= pod.labels.items()]
        if any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod.containers):
            assert budget["minAvailable"] == 1, "pods that wait for a GPU must not keep nodes from being drained"
        else:
            assert budget["maxUnavailable"] == 1, "also a lone pod can be moved"


def test_a_gpu_is_asked_for_as_a_whole(rendered: dict[str, Manifests]) -> None:
    for service in ("prefill", "decode"):
        for overlay in ("gpu", "gpu-redis-ha"):
            resources = rendered[overlay].pod(service).spec["containers"][0]["resources"]
            assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
        assert "nvidia.com/gpu" not in str(rendered["cpu-demo"].pod(service).spec)


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_rollouts_end_without_gpus_for_all_and_leave_one_that_serves(
    rendered: dict[str, Manifests], service: str
) -> None:
    """What has no GPU counts as unavailable; nothing that serves is replaced until more are allowed to be."""
    autoscaled = rendered["gpu-redis-ha"]
    most = autoscaled.get("HorizontalPodAutoscaler", service)["spec"]["maxReplicas"]
    strategy = autoscaled.get("Deployment", service)["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxSurge"] == 0, "there may be no spare GPU"
    share = int(strategy["maxUnavailable"].removesuffix("%"))
    for wanted in range(2, most + 1):
        assert wanted - wanted * share // 100 == 1, wanted


def test_what_is_written_to_is_a_volume(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            writable = _writable(pod.spec, container)
            for folder in ("/tmp", "/cache"):
                variables = manifests.environment(pod, container)
                uses = [name for name in ("HOME", "TRITON_CACHE_DIR") if variables.get(name, "").startswith(folder)]
                assert not uses or folder in writable, (pod.name, container["name"], uses)


def _writable(spec: Manifest, container: Manifest) -> set[str]:
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounts = container.get("volumeMounts", [])
    assert {mount["name"] for mount in mounts} <= volumes
    return {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
