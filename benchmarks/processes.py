"""The real service, its processes started one by one as its user starts them."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import StructKVError

_HOST = "127.0.0.1"
_READY_SECONDS = 300.0
_STOP_SECONDS = 40.0


class ServiceError(StructKVError):
    """A service did not start, or a request failed; the message has what it said."""


class Processes:
    """Starts processes on free ports and ends them all at exit; a context manager."""

    def __init__(self, model: str, log_folder: Path) -> None:
        self._model = model
        self._log_folder = log_folder
        self._running: list[subprocess.Popen[bytes]] = []
        self.pids: dict[str, int] = {}
        """Process ids by kind of service; of several of a kind, the last one's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):  # the gateway first
            process.terminate()
        for process in self._running:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def worker(self, kind: str, *flags: str) -> str:
        """Start a prefill or decode worker; return its address when it serves."""
        address = f"{_HOST}:{free_port()}"
        self._start(kind, address, flags, lambda: _is_serving(address))
        return address

    def gateway(self, decode: str, prefill: str, *flags: str) -> tuple[str, int]:
        """Start a gateway for a worker of each kind; return its URL and process id when it is ready."""
        address = f"{_HOST}:{free_port()}"
        flags = ("--decode-workers", decode, "--prefill-workers", prefill, *flags)
        pid = self._start("gateway", address, flags, lambda: _answers(f"http://{address}/ready"))
        return f"http://{address}", pid

    def all_run(self) -> bool:
        """Tell whether no process has ended."""
        return all(process.poll() is None for process in self._running)

    def link(self, address: str, gbit_per_second: float) -> str:
        """Put an emulated link in front of an address; return its own."""
        command = [sys.executable, "-m", "benchmarks.link", address, str(gbit_per_second)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
        self._running.append(process)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise ServiceError("the link did not start")
        return f"{_HOST}:{int(port)}"

    def _start(self, kind: str, address: str, flags: tuple[str, ...], is_ready: Callable[[], bool]) -> int:
        host, _, port = address.rpartition(":")
        flags = ("--model", self._model, "--host", host, "--port", port, *flags)
        command = [sys.executable, "-m", "services.cli", kind, *flags]
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log_folder / f"{kind}-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603
        self._running.append(process)
        self.pids[kind] = process.pid
        deadline = time.monotonic() + _READY_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"{kind} did not start: {log.read_text(encoding='utf-8')[-1000:]}")
            time.sleep(0.2)
        return process.pid


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((_HOST, 0)) as held:
        return int(held.getsockname()[1])


def _is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310  our own
        return bool(reply.status == 200)
    return False
