"""Asks the service from inside the cluster, by its Service's name."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.load import Request
from tests.cluster_check.cluster import Namespace
from tests.deploy.manifests import kubectl

Event = dict[str, Any]

_PROGRAM = (Path(__file__).parent / "client_program.py").read_text()
_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "client"},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "client",
                "image": "structkv-gateway:0.1.0",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "86400"],
            }
        ],
    },
}


@dataclass
class Load:
    """What clients that went on asking have got."""

    events: list[Event] = field(default_factory=list)

    @property
    def failures(self) -> list[Event]:
        return [event for event in self.events if "error" in event]

    @property
    def texts(self) -> dict[int, set[str]]:
        """The different answers to each prompt."""
        found: dict[int, set[str]] = {}
        for event in self.events:
            found.setdefault(event["prompt"], set()).add(event.get("text", ""))
        return found


@dataclass(frozen=True)
class Client:
    """A pod in a namespace of its own, to which no policy applies, that asks another namespace's gateway."""

    home: Namespace
    served: Namespace

    def start(self) -> None:
        self.home("apply", "--filename", "-", given=json.dumps(_POD))
        self.home("wait", "--for=condition=Ready", "pod/client", "--timeout=120s", seconds=150)

    def stream(self, request: Request) -> Iterator[Event]:
        """Ask once; return each piece as it comes, and the whole answer, or what went wrong, at the end."""
        with self._running([request.body()], clients=0) as process:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)

    def ask(self, request: Request) -> Event:
        """Ask once, and return what came of it."""
        *_, last = self.stream(request)
        return last

    @contextmanager
    def load(self, requests: Sequence[Request], clients: int) -> Iterator[Load]:
        """Have clients go on asking as long as the context lasts; what they got is there when it has ended."""
        load = Load()
        with self._running([request.body() for request in requests], clients) as process:
            yield load
            output, _ = process.communicate()
        load.events += map(json.loads, output.splitlines())

    @contextmanager
    def _running(self, bodies: list[dict[str, object]], clients: int) -> Iterator["subprocess.Popen[str]"]:
        url = f"http://gateway.{self.served.name}.svc"
        plan = json.dumps({"url": url, "key": self.served.key, "bodies": bodies, "clients": clients})
        command = [kubectl(), "--namespace", self.home.name, "exec", "--stdin", "client", "--"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, "python", "-c", _PROGRAM, plan], **pipes) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
