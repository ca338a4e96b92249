import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES, OVERLAYS, ROOT, Manifests, render

# Overlays as users write them: one of ours and components of their choice.
CHOICES = {
    "cpu-demo with hub-access": ("cpu-demo", ["hub-access"]),
    "cpu-demo with redis-ha": ("cpu-demo", ["redis-ha"]),
    "gpu with mtls": ("gpu", ["mtls"]),
    "gpu with monitoring and keda": ("gpu", ["monitoring", "autoscaling-keda"]),
    "gpu in another namespace": ("gpu", ["mtls", "redis-ha"]),
}
NAMESPACES = {"gpu in another namespace": "structkv-next"}
OWN_DISKS = "gpu with a disk for each pod"


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    """Return what every overlay and choice renders to."""
    copy = tmp_path_factory.mktemp("tree") / "deploy"
    shutil.copytree(ROOT / "deploy", copy, ignore=shutil.ignore_patterns("node_modules", "wheels"))
    found = {name: Manifests(render(KUBERNETES / "overlays" / name)) for name in OVERLAYS}
    for number, (name, (overlay, components)) in enumerate(CHOICES.items()):
        folder = copy / "k8s" / "overlays" / f"choice-{number}"
        _write(folder, overlay, components, NAMESPACES.get(name, "structkv"))
        found[name] = Manifests(render(folder))
    found[OWN_DISKS] = Manifests(render(_without_shared_storage(copy / "k8s" / "overlays")))
    return found


def _without_shared_storage(overlays: Path) -> Path:
    """Copy `gpu` with other components in place of `model-pvc`, as docs/kubernetes.md says."""
    folder = overlays / "gpu-own-disks"
    shutil.copytree(overlays / "gpu", folder)
    own = folder / "kustomization.yaml"
    text, shared = own.read_text(), "  - ../../components/model-pvc\n"
    assert shared in text
    own.write_text(text.replace(shared, "  - ../../components/model-init\n  - ../../components/hub-access\n"))
    return folder


@pytest.fixture(params=[*OVERLAYS, *CHOICES, OWN_DISKS])
def manifests(request: pytest.FixtureRequest, rendered: dict[str, Manifests]) -> Manifests:
    """Every overlay and choice in turn."""
    return rendered[request.param]


def _write(folder: Path, overlay: str, components: list[str], namespace: str) -> None:
    folder.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [f"../{overlay}"],
        "components": [f"../../components/{component}" for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
