"""Whatever a manifest names is there."""

import pytest

from tests.deploy.manifests import SECRETS_MADE_ELSEWHERE, SERVICES, Manifests, selects


def secrets(manifests: Manifests) -> set[str]:
    issued = {certificate["spec"]["secretName"] for certificate in manifests.of("Certificate")}
    return SECRETS_MADE_ELSEWHERE | issued


def test_mounted_volumes_exist(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in manifests.names("ConfigMap"), pod.name
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets(manifests), pod.name
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in manifests.names("PersistentVolumeClaim")


def test_variables_come_from_what_exists(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            for entry in container.get("envFrom", []):
                assert entry["configMapRef"]["name"] in manifests.names("ConfigMap"), pod.name
            for entry in container.get("env", []):
                reference = entry.get("valueFrom", {}).get("secretKeyRef")
                if reference and not reference.get("optional"):
                    assert reference["name"] in secrets(manifests), (pod.name, entry["name"])


def test_whoever_waits_for_the_model_says_why_it_is_not_there(rendered: dict[str, Manifests]) -> None:
    [job] = rendered["gpu"].pod("fetch-model").spec["containers"]
    assert "tee /cache/fetch.log" in job["args"][0]
    for service in SERVICES:
        [before] = rendered["gpu"].pod(service).spec["initContainers"]
        assert "/cache/fetch.log" in before["args"][0]


def test_no_secret_is_in_the_manifests(manifests: Manifests) -> None:
    assert not manifests.of("Secret")


def test_selectors_take_their_own_pods_and_no_others(manifests: Manifests) -> None:
    for kind in ("Deployment", "StatefulSet"):
        for manifest in manifests.of(kind):
            taken = [pod.name for pod in manifests.pods if selects(manifest["spec"]["selector"], pod.labels)]
            assert taken == [manifest["metadata"]["name"]]


def test_services_lead_to_ports_that_listen(manifests: Manifests) -> None:
    for service in manifests.of("Service"):
        name = service["metadata"]["name"]
        selector = {"matchLabels": service["spec"]["selector"]}
        [pod] = [pod for pod in manifests.pods if selects(selector, pod.labels)]
        listening = {port["name"] for container in pod.containers for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= listening, name


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_workers_are_found_one_by_one(manifests: Manifests, service: str) -> None:
    assert manifests.get("Service", service)["spec"]["clusterIP"] == "None"
    pod = manifests.pod("gateway")
    variables = manifests.environment(pod, pod.spec["containers"][0])
    assert variables[f"STRUCTKV_{service.upper()}_WORKERS"] == f"{service}:50051"


def test_autoscalers_scale_what_exists_and_alone(manifests: Manifests) -> None:
    for autoscaler in manifests.of("HorizontalPodAutoscaler") + manifests.of("ScaledObject"):
        spec = autoscaler["spec"]
        deployment = manifests.get("Deployment", spec["scaleTargetRef"]["name"])
        assert "replicas" not in deployment["spec"], "each apply would set the number back"
        lowest = spec.get("minReplicas", spec.get("minReplicaCount"))
        highest = spec.get("maxReplicas", spec.get("maxReplicaCount"))
        assert 2 <= lowest <= highest


def test_one_thing_scales_each_service(rendered: dict[str, Manifests]) -> None:
    for name, kind in (("gpu-redis-ha", "HorizontalPodAutoscaler"), ("gpu with monitoring and keda", "ScaledObject")):
        assert rendered[name].names(kind) == set(SERVICES)


def test_monitors_select_ports_that_exist(manifests: Manifests) -> None:
    for monitor in manifests.of("PodMonitor"):
        [pod] = [pod for pod in manifests.pods if selects(monitor["spec"]["selector"], pod.labels)]
        listening = {port["name"] for container in pod.containers for port in container.get("ports", [])}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= listening
    for monitor in manifests.of("ServiceMonitor"):
        services = [
            service
            for service in manifests.of("Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        [service] = services
        named = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= named


def test_certificates_are_issued_by_issuers_that_exist(manifests: Manifests) -> None:
    made = {certificate["spec"]["secretName"] for certificate in manifests.of("Certificate")}
    for certificate in manifests.of("Certificate"):
        assert certificate["spec"]["issuerRef"]["name"] in manifests.names("Issuer")
    for issuer in manifests.of("Issuer"):
        if "ca" in issuer["spec"]:
            assert issuer["spec"]["ca"]["secretName"] in made


def test_rights_are_bound_to_whoever_uses_them(manifests: Manifests) -> None:
    for binding in manifests.of("RoleBinding"):
        assert binding["roleRef"]["name"] in manifests.names("Role")
        accounts = {subject["name"] for subject in binding["subjects"]}
        assert accounts <= manifests.names("ServiceAccount")
        users = {pod.spec.get("serviceAccountName") for pod in manifests.pods}
        assert accounts <= users
