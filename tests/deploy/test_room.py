"""Pods have room for what they hold, and the demo fits a laptop's cluster."""

import re

import pytest

from tests.deploy.conftest import OWN_DISKS
from tests.deploy.manifests import ROOT, SERVICES, Manifest, Manifests, Pod

UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# What kind's own pods ask for on its only node.
SYSTEM_CPU, SYSTEM_MEMORY = 0.95, 290 * 2**20


def amount(text: str) -> float:
    """Return a quantity as Kubernetes writes it."""
    found = re.fullmatch(r"(\d+)([a-zA-Z]*)", text)
    assert found, text
    return int(found[1]) * UNITS[found[2]]


def asked(pod: Pod, resource: str) -> float:
    """Return what the scheduler sets aside: all containers together, or one that runs before if it asks for more."""
    together = sum(amount(container["resources"]["requests"][resource]) for container in pod.spec["containers"])
    before = (amount(container["resources"]["requests"][resource]) for container in pod.spec.get("initContainers", []))
    return max(together, *before, 0)


def disks(pod: Pod) -> dict[str, float]:
    volumes = pod.spec.get("volumes", [])
    return {volume["name"]: amount(volume["emptyDir"]["sizeLimit"]) for volume in volumes if "emptyDir" in volume}


def test_the_demo_fits_two_cores_and_six_gibibytes_and_one_more_pod_while_it_rolls(
    rendered: dict[str, Manifests],
) -> None:
    pods = rendered["cpu-demo"].pods
    cpu, memory = ([asked(pod, resource) for pod in pods] for resource in ("cpu", "memory"))
    assert sum(cpu) + max(cpu) + SYSTEM_CPU <= 2
    assert sum(memory) + max(memory) + SYSTEM_MEMORY <= 6 * 2**30
    assert sum(amount(pod.spec["containers"][0]["resources"]["limits"]["memory"]) for pod in pods) <= 5 * 2**30


@pytest.mark.parametrize("service", SERVICES)
def test_disks_are_within_what_the_pod_may_take(manifests: Manifests, service: str) -> None:
    pod = manifests.pod(service)
    [container] = pod.spec["containers"]
    assert sum(disks(pod).values()) <= amount(container["resources"]["limits"]["ephemeral-storage"])


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_a_worker_s_disk_holds_the_model_that_is_documented(rendered: dict[str, Manifests], service: str) -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    [weights] = re.findall(r"An 80 GB GPU with (\d+) GB of weights", text)
    pod = rendered[OWN_DISKS].pod(service)
    [container] = pod.spec["containers"]
    assert disks(pod)["cache"] > 1.5 * int(weights) * 1e9
    assert amount(container["resources"]["requests"]["ephemeral-storage"]) >= disks(pod)["cache"]


@pytest.mark.parametrize("choice", [OWN_DISKS, "cpu-demo with hub-access"])
def test_gateways_fetch_no_weights(rendered: dict[str, Manifests], choice: str) -> None:
    before = fetching(rendered[choice], "gateway")
    assert before["image"] == "structkv-gateway:0.1.0"
    assert before["args"] == ["fetch", "--no-weights"]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("choice", [OWN_DISKS, "cpu-demo with hub-access"])
def test_whoever_fetches_has_a_token_and_what_serves_stays_offline(
    rendered: dict[str, Manifests], choice: str, service: str
) -> None:
    variables = {entry["name"]: entry for entry in fetching(rendered[choice], service)["env"]}
    secret = {"name": "hub-token", "key": "token", "optional": True}
    assert variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == secret
    pod = rendered[choice].pod(service)
    assert rendered[choice].environment(pod, pod.spec["containers"][0])["HF_HUB_OFFLINE"] == "1"


def fetching(manifests: Manifests, service: str) -> Manifest:
    [container] = manifests.pod(service).spec["initContainers"]
    assert container["name"] == "fetch-model"
    return container
