"""Nodes that say they have a GPU each. Pods that are bound to them become ready without running, in a while."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import httpx

from tests.deploy.manifests import Manifest, kubectl

_CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "500Gi", "nvidia.com/gpu": "1"}
# As GPU nodes have it: nothing but what asks for a GPU comes there.
_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


class FakeGpus:
    """Keeps nodes alive and settles their pods, through the API server."""

    def __init__(self, http: httpx.Client, names: list[str]) -> None:
        self._http = http
        self._names = names
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def start(self) -> None:
        for name in self._names:
            self._http.post(
                "/api/v1/nodes",
                json={
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                    "spec": {"taints": [_TAINT]},
                },
            ).raise_for_status()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        for name in self._names:
            self._http.delete(f"/api/v1/nodes/{name}")

    def _go_on(self) -> None:
        while not self._ended.wait(1):
            with suppress(httpx.HTTPError):  # the next round is in a second
                self._beat()

    def _beat(self) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": _now()}
        for name in self._names:
            self._patch(f"/api/v1/nodes/{name}/status", {"capacity": _CAPACITY, "conditions": [ready]})
        for pod in self._http.get("/api/v1/pods").raise_for_status().json()["items"]:
            if pod["spec"].get("nodeName") in self._names:
                self._settle(pod)

    def _settle(self, pod: Manifest) -> None:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if "deletionTimestamp" in pod["metadata"]:
            body = json.dumps({"gracePeriodSeconds": 0})
            self._http.request("DELETE", path, content=body, headers={"Content-Type": "application/json"})
        elif pod["status"]["phase"] != "Running":
            ready = [
                {"type": kind, "status": "True", "lastTransitionTime": _now()} for kind in ("Ready", "Initialized")
            ]
            self._patch(f"{path}/status", {"phase": "Running", "podIP": "10.255.0.1", "conditions": ready})

    def _patch(self, path: str, status: Manifest) -> None:
        body = json.dumps({"status": status | ({"allocatable": _CAPACITY} if "capacity" in status else {})})
        kind = {"Content-Type": "application/strategic-merge-patch+json"}
        self._http.patch(path, content=body, headers=kind).raise_for_status()


@contextmanager
def fake_gpus(count: int) -> Iterator[None]:
    """Give the cluster so many more nodes of a GPU each, as long as the context lasts."""
    command = [kubectl(), "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().split()[-1]
        with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
            gpus = FakeGpus(http, [f"structkv-check-gpu-{number}" for number in range(count)])
            gpus.start()
            try:
                yield
            finally:
                gpus.stop()
                proxy.terminate()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
