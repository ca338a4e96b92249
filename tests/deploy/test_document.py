"""docs/kubernetes.md speaks of what there is, and its examples work."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES, OVERLAYS, ROOT, SERVICES, Manifests, render

TEXT = (ROOT / "docs" / "kubernetes.md").read_text()
[OVERLAY, MERGED] = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def overlays(tmp_path: Path) -> Path:
    """A copy of the tree to write overlays into."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("wheels"))
    return tmp_path / "deploy" / "k8s" / "overlays"


def written(folder: Path, text: str) -> Manifests:
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text)
    return Manifests(render(folder))


def test_the_overlay_of_one_s_own_names_its_images(overlays: Path) -> None:
    manifests = written(overlays / "mine", OVERLAY)
    images = {container["image"] for pod in manifests.pods for container in pod.containers}
    assert images == {f"registry.example.org/structkv/{service}:0.1.0" for service in SERVICES}


def test_another_model_is_merged_in(overlays: Path) -> None:
    manifests = written(overlays / "mine", OVERLAY.replace("../cpu-demo", "../gpu") + MERGED)
    [model] = yaml.safe_load(MERGED)["configMapGenerator"][0]["literals"]
    for pod in manifests.pods:
        variables = manifests.environment(pod, pod.spec["containers"][0])
        assert f"STRUCTKV_MODEL={variables['STRUCTKV_MODEL']}" == model


def test_all_overlays_and_components_are_explained() -> None:
    components = {path.parent.name for path in (KUBERNETES / "components").glob("*/kustomization.yaml")}
    named = set(re.findall(r"`([a-z0-9-]+)`", "".join(line for line in TEXT.splitlines() if line.startswith("| `"))))
    assert components | set(OVERLAYS) <= named
    assert {path.name for path in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)


def test_what_needs_a_cluster_says_so() -> None:
    blocks = re.findall(r"(.*)\n```sh\n", TEXT)
    assert blocks
    assert set(blocks) == {"<!-- not run: needs a cluster -->"}


def test_the_figures_are_those_of_the_formula() -> None:
    whole = 32768 * 28 * 2 * 4 * 128 * 2
    assert f"{whole / 1e9:.1f} GB of keys and values" in TEXT
    assert f"at 10% {whole / 10 / 1e6:.0f} MB" in TEXT
    assert f"{whole * 0.06 / 1e6:.0f} MB in `int8`" in TEXT
    room = 0.85 * (80e9 - 15e9)
    assert f"some {room / (whole / 10) // 10 * 10:.0f} of them" in TEXT
    assert f"{whole * 0.06 / 32768 * 8000 / 1e6:.0f} MB/s" in TEXT
