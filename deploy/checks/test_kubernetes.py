"""The overlays by the tools that operators have: `kubectl kustomize`, `kubernetes-validate`, the operators' schemas."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deploy.checks.tools import TOOLS, Done, run
from tests.deploy.conftest import rendered
from tests.deploy.manifests import OVERLAYS, Manifest, Manifests
from tests.deploy.test_schemas import CUSTOM

__all__ = ["rendered"]

VERSIONS = ("1.30", kubernetes_validate.latest_version())
KINDS = {
    "Certificate": ("cert-manager.io", "v1"),
    "Issuer": ("cert-manager.io", "v1"),
    "PodMonitor": ("monitoring.coreos.com", "v1"),
    "PrometheusRule": ("monitoring.coreos.com", "v1"),
    "ScaledObject": ("keda.sh", "v1alpha1"),
    "ServiceMonitor": ("monitoring.coreos.com", "v1"),
}


def written(overlay: str, folder: Path) -> Path:
    done = run("kubectl", "kustomize", f"deploy/k8s/overlays/{overlay}")
    assert done.code == 0, done.output
    path = folder / f"{overlay}.yaml"
    path.write_text(done.output)
    return path


def validate(path: Path, version: str) -> Done:
    return run("kubernetes-validate", "-k", version, "--strict", path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid(overlay: str, version: str, tmp_path: Path) -> None:
    path = written(overlay, tmp_path)
    done = validate(path, version)
    assert done.code == 0, done.output
    unknown = {line.split(" for kind ")[1].split()[0] for line in done.output.splitlines() if "find schema" in line}
    assert unknown <= CUSTOM
    assert done.output.count(" passed ") + done.output.count("find schema") == len(_manifests(path))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bad_manifest_is_not(version: str, tmp_path: Path) -> None:
    path = written("cpu-demo", tmp_path)
    manifests = _manifests(path)
    [gateway] = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == "gateway"]
    gateway["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    path.write_text(yaml.safe_dump_all(manifests))
    done = validate(path, version)
    assert done.code != 0
    assert "readynessProbe" in done.output


def test_operators_take_their_resources(rendered: dict[str, Manifests]) -> None:
    custom = [manifest for manifests in rendered.values() for manifest in manifests.all if manifest["kind"] in CUSTOM]
    assert {manifest["kind"] for manifest in custom} == CUSTOM == KINDS.keys()
    done = check_schemas(custom)
    assert done.code == 0, done.output


def test_operators_know_every_field(rendered: dict[str, Manifests], tmp_path: Path) -> None:
    custom = [manifest for manifests in rendered.values() for manifest in manifests.all if manifest["kind"] in CUSTOM]
    done = check_fields(custom, tmp_path)
    assert done.code == 0, done.output


def test_a_bad_resource_of_an_operator_is_noticed(rendered: dict[str, Manifests], tmp_path: Path) -> None:
    incomplete = json.loads(json.dumps(rendered["gpu-redis-ha"].get("Certificate", "decode")))
    del incomplete["spec"]["issuerRef"]
    assert "issuerRef" in check_schemas([incomplete]).output
    misspelt = json.loads(json.dumps(rendered["gpu-redis-ha"].get("PodMonitor", "decode")))
    misspelt["spec"]["podMetricEndpoints"] = []
    assert "podMetricEndpoints" in check_fields([misspelt], tmp_path).output


def check_schemas(manifests: list[Manifest]) -> Done:
    """Hold resources against the JSON schemas in their definitions: types, values, required fields."""
    return run("node", "validate.mjs", folder=TOOLS / "schemas", given=json.dumps(manifests))


def check_fields(manifests: list[Manifest], folder: Path) -> Done:
    """Hold resources against the same definitions' types, which tell unknown fields from known ones."""
    (folder / "node_modules").symlink_to(TOOLS / "schemas" / "node_modules")
    lines = [
        f'import type {{ I{kind} }} from "@kubernetes-models/{_package(group)}/{group}/{version}";'
        for kind, (group, version) in KINDS.items()
    ]
    for number, manifest in enumerate(manifests):
        lines.append(f"export const m{number}: I{manifest['kind']} = {json.dumps(manifest)};")
    source = folder / "resources.ts"
    source.write_text("\n".join(lines))
    compiler = TOOLS / "schemas" / "node_modules" / ".bin" / "tsc"
    return run(compiler, "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", source, folder=folder)


def _package(group: str) -> str:
    return {"cert-manager.io": "cert-manager", "keda.sh": "keda"}.get(group, "prometheus-operator")


def _manifests(path: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]
