"""A namespace of its own in whatever cluster KUBECONFIG names, and overlays written for it."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import ROOT, Manifest, kubectl, render

# A filter for manifests, where the cluster is older than they are.
ADAPT = shlex.split(os.environ.get("ADAPT", "cat"))
START_SECONDS = 1800


def call(*arguments: str, given: str | None = None, check: bool = True, seconds: float = 120) -> str:
    """Run kubectl, and return what it printed; fail with its words."""
    done = subprocess.run(
        [kubectl(), *arguments], input=given, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)[:300]}: {done.stderr[-3000:]}"
    return done.stdout


def until(holds: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Wait for what nothing announces; say so, and fail if it does not come."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + seconds, f"waited {seconds} s for {what}"
        time.sleep(1)
    print(f"  [{time.monotonic() - began:.0f} s] {what}", flush=True)


@dataclass
class Namespace:
    """A namespace, its secrets, and what is applied to it.

    Attributes:
        tree: a copy of deploy/ to write overlays into.
    """

    tree: Path
    name: str = field(default_factory=lambda: f"structkv-check-{secrets.token_hex(3)}")
    key: str = field(default_factory=lambda: secrets.token_hex(16))

    def create(self) -> None:
        shutil.copytree(ROOT / "deploy", self.tree, ignore=shutil.ignore_patterns("wheels", "checks"))
        call("create", "namespace", self.name)
        self("create", "secret", "generic", "api-keys", f"--from-literal=keys={self.key}")
        self("create", "secret", "generic", "redis-auth", f"--from-literal=password={secrets.token_hex(16)}")

    def delete(self) -> None:
        call("delete", "namespace", self.name, "--wait=false")
        self("delete", "pods", "--all", "--grace-period=0", "--force", check=False)

    def __call__(self, *arguments: str, given: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """Run kubectl in the namespace."""
        return call("--namespace", self.name, *arguments, given=given, check=check, seconds=seconds)

    def apply(self, kustomization: Manifest) -> None:
        """Apply an overlay as a user writes it: its own file, the rest from the tree."""
        folder = self.tree / "k8s" / "overlays" / "check"
        folder.mkdir(exist_ok=True)
        head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": self.name}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(head | kustomization))
        adapted = subprocess.run(
            ADAPT, input=yaml.safe_dump_all(render(folder)), capture_output=True, text=True, check=True
        ).stdout
        self("apply", "--filename", "-", given=adapted)

    def get(self, kind: str, name: str) -> Manifest:
        found: Manifest = json.loads(self("get", kind, name, "--output", "json"))
        return found

    def pods(self, component: str) -> list[Manifest]:
        """Return a service's pods, those that are ending left out."""
        label = f"app.kubernetes.io/component={component}"
        found = json.loads(self("get", "pods", "--selector", label, "--output", "json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, component: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods(component) if is_ready(pod)]

    def endpoints(self, service: str) -> list[str]:
        """Return the addresses behind a Service."""
        subsets = self.get("endpoints", service).get("subsets", [])
        return [address["ip"] for subset in subsets for address in subset.get("addresses", [])]

    def rolled_out(self, *names: str) -> None:
        """Wait until rollouts are complete, of Deployments unless the name says what else."""
        for name in names:
            began = time.monotonic()
            kind = name if "/" in name else f"deployment/{name}"
            self("rollout", "status", kind, f"--timeout={START_SECONDS}s", seconds=START_SECONDS + 30)
            print(f"  [{time.monotonic() - began:.0f} s] {name} is rolled out", flush=True)


def is_ready(pod: Manifest) -> bool:
    conditions: list[dict[str, Any]] = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
