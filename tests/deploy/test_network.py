"""Who reaches whom, computed from the network policies: exactly those who must."""

import itertools

import pytest

from tests.deploy.manifests import Manifest, Manifests, Pod, selects

OUTSIDE = "outside"

BASE = {
    (OUTSIDE, "gateway", "http"),
    ("monitoring", "gateway", "http"),
    ("monitoring", "prefill", "metrics"),
    ("monitoring", "decode", "metrics"),
    ("gateway", "prefill", "grpc"),  # for health
    ("gateway", "decode", "grpc"),
    ("decode", "prefill", "grpc"),
}
STORE = {
    ("prefill", "redis-proxy", "redis"),
    ("decode", "redis-proxy", "redis"),
    ("redis-proxy", "redis", "redis"),
    ("redis", "redis", "redis"),
    ("redis", "redis", "sentinel"),
}


def test_everybody_is_denied_at_first(manifests: Manifests) -> None:
    policy = manifests.get("NetworkPolicy", "default-deny")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize(("overlay", "expected"), [("cpu-demo", BASE), ("gpu", BASE), ("gpu-redis-ha", BASE | STORE)])
def test_exactly_these_reach_each_other(
    rendered: dict[str, Manifests], overlay: str, expected: set[tuple[str, str, str]]
) -> None:
    manifests = rendered[overlay]
    pods = {pod.labels["app.kubernetes.io/component"]: pod for pod in manifests.pods}
    ports = {name: {port["name"] for c in pod.containers for port in c.get("ports", [])} for name, pod in pods.items()}
    found = {
        (source, target, port)
        for source, target in itertools.product([OUTSIDE, "monitoring", *pods], pods)
        for port in ports[target]
        if _passes(manifests, pods, source, target, port)
    }
    assert found == expected


def test_the_internet_is_reached_by_whoever_downloads_and_by_nobody_else(rendered: dict[str, Manifests]) -> None:
    assert _leaves(rendered["cpu-demo"]) == set()
    assert _leaves(rendered["gpu"]) == {"fetch-model"}
    assert _leaves(rendered["gpu-redis-ha"]) == {"fetch-model", "renewal"}
    assert _leaves(rendered["cpu-demo with hub-access"]) == {"gateway", "prefill", "decode"}


def test_everybody_asks_for_names(manifests: Manifests) -> None:
    policy = manifests.get("NetworkPolicy", "names")["spec"]
    assert policy["podSelector"] == {}
    assert {(port["protocol"], port["port"]) for port in policy["egress"][0]["ports"]} == {("UDP", 53), ("TCP", 53)}


def _passes(manifests: Manifests, pods: dict[str, Pod], source: str, target: str, port: str) -> bool:
    goes_out = source not in pods or _admitted(manifests, "egress", pods[source], pods[target], target, port)
    return goes_out and _admitted(manifests, "ingress", pods[target], pods.get(source), source, port)


def _admitted(manifests: Manifests, way: str, own: Pod, other: Pod | None, other_name: str, port: str) -> bool:
    return any(
        (not rule.get("ports") or any(entry["port"] == port for entry in rule["ports"]))
        and _includes(rule.get("from" if way == "ingress" else "to"), other, other_name)
        for rule in _rules(manifests, way, own)
    )


def _rules(manifests: Manifests, way: str, pod: Pod) -> list[Manifest]:
    return [
        rule
        for policy in manifests.of("NetworkPolicy")
        if selects(policy["spec"]["podSelector"], pod.labels) and way.capitalize() in policy["spec"]["policyTypes"]
        for rule in policy["spec"].get(way, [])
    ]


def _includes(peers: list[Manifest] | None, pod: Pod | None, name: str) -> bool:
    if peers is None:
        return True
    for peer in peers:
        if "namespaceSelector" in peer:
            if peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == name:
                return True
        elif "podSelector" in peer and pod is not None and selects(peer["podSelector"], pod.labels):
            return True
    return False


def _leaves(manifests: Manifests) -> set[str]:
    """Return the pods that reach addresses beyond the cluster's own networks, or any address at all."""
    leaving = set()
    for pod in manifests.pods:
        for rule in _rules(manifests, "egress", pod):
            blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer]
            if "to" not in rule or "0.0.0.0/0" in blocks:
                leaving.add(pod.labels["app.kubernetes.io/component"])
    return leaving
