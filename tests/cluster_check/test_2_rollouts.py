"""Rollouts where autoscaling wants more workers than there are GPUs, on nodes that only say that they have one."""

import shutil
from collections.abc import Iterator

import pytest

from tests.cluster_check.cluster import Namespace, is_ready, until
from tests.cluster_check.fake_gpus import fake_gpus
from tests.deploy.manifests import Manifest

HASH = "pod-template-hash"


@pytest.fixture(scope="module")
def gpus(namespace: Namespace) -> Iterator[Namespace]:
    """Return the namespace with two workers of each kind, on the four GPUs that there are."""
    overlays = namespace.tree / "k8s" / "overlays"
    shutil.copytree(overlays / "gpu", overlays / "gpu-of-ours")
    own = overlays / "gpu-of-ours" / "kustomization.yaml"
    shared, each_its_own = (
        "  - ../../components/model-pvc",
        "  - ../../components/model-init\n  - ../../components/hub-access",
    )
    assert shared in own.read_text()
    own.write_text(own.read_text().replace(shared, each_its_own))
    with fake_gpus(4):
        namespace.apply({"resources": ["../gpu-of-ours"], "replicas": [{"name": "gateway", "count": 0}]})
        until(lambda: len(namespace.ready("prefill")) == len(namespace.ready("decode")) == 2, "two of each serve", 180)
        yield namespace
        namespace("scale", "deployment", "--all", "--replicas=0")
        until(lambda: not namespace.pods("decode") and not namespace.pods("prefill"), "all have ended", 180)


@pytest.mark.parametrize("wanted", [3, 4, 8])
def test_a_rollout_comes_to_its_end_with_too_few_gpus(wanted: int, gpus: Namespace) -> None:
    gpus("scale", "deployment/decode", f"--replicas={wanted}")
    until(lambda: len(gpus.pods("decode")) == wanted, f"{wanted} are wanted", 60)
    gpus("rollout", "restart", "deployment/decode")
    fewest = wanted

    def ended() -> bool:
        nonlocal fewest
        pods = gpus.pods("decode")
        fewest = min(fewest, sum(map(is_ready, pods)))
        return len(pods) == wanted and len(revisions(pods)) == 1 and revisions(pods) != before

    before = revisions([pod for pod in gpus.pods("decode") if is_ready(pod)])
    until(ended, "all pods are of the new revision", 180)
    assert fewest >= 1, "one has always served"
    until(lambda: len(gpus.ready("decode")) == 2, "as many serve as there are GPUs for", 60)


def revisions(pods: list[Manifest]) -> set[str]:
    return {pod["metadata"]["labels"][HASH] for pod in pods}
