"""What kustomize makes of the overlays, and how to look at it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "k8s"
OVERLAYS = ("cpu-demo", "gpu", "gpu-redis-ha")
SERVICES = ("gateway", "prefill", "decode")

# Made by hand or by cert-manager, and so in no manifest.
SECRETS_MADE_ELSEWHERE = {"api-keys", "redis-auth"}


def kubectl() -> str:
    """Return the kubectl that comes with the development dependencies, the same version everywhere."""
    return str(Path(sys.executable).with_name("kubectl"))


def render(folder: Path) -> list[Manifest]:
    """Return a kustomization's manifests; raise with kustomize's words where it fails."""
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@dataclass(frozen=True)
class Pod:
    """A pod's template, and what makes it."""

    kind: str
    name: str
    labels: dict[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        """Its containers, those that run before included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def serves(self) -> bool:
        """Whether it runs on, rather than to an end."""
        return self.kind in {"Deployment", "StatefulSet"}


class Manifests:
    """The manifests of one kustomization."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.all = manifests

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.all if manifest["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {manifest["metadata"]["name"] for manifest in self.of(kind)}

    def get(self, kind: str, name: str) -> Manifest:
        [found] = [manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name]
        return found

    @property
    def pods(self) -> list[Pod]:
        return list(self._pods())

    def pod(self, component: str) -> Pod:
        [found] = [pod for pod in self.pods if pod.labels["app.kubernetes.io/component"] == component]
        return found

    def environment(self, pod: Pod, container: Manifest) -> dict[str, str]:
        """Return a container's variables as far as they are in the manifests."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            variables[entry["name"]] = entry.get("value", "")
        return variables

    def _pods(self) -> Iterator[Pod]:
        for manifest in self.all:
            spec = manifest.get("spec", {})
            template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
            if manifest["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"}:
                yield Pod(
                    manifest["kind"], manifest["metadata"]["name"], template["metadata"]["labels"], template["spec"]
                )


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes what has these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "the only operator that is used"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
