"""The real service with the real model, started as its user starts it."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

MODEL = "smollm2-135m-instruct"
STRUCTKV = str(Path(sys.executable).with_name("structkv"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class Up:
    """A running `structkv up`."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    client: openai.OpenAI
    metrics_port: int

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the service and what this process holds of it; return the exit code."""
        self.client.close()
        self.process.send_signal(signum)
        return self.process.wait(60)

    def children(self) -> list[tuple[str, psutil.Process]]:
        """Return the running services: kind and process."""
        children = psutil.Process(self.process.pid).children()
        alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return sorted(((child.cmdline()[2], child) for child in alive), key=lambda pair: pair[0])

    def wait_until_ready(self, timeout_seconds: float = 120) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"`structkv up` ended: {self.output.read_text()}"
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # the gateway comes last
            time.sleep(0.2)
        pytest.fail(f"not ready after {timeout_seconds} s: {self.output.read_text()}")

    def says(self, text: str, timeout_seconds: float = 30) -> bool:
        """Wait until the output has a text: the supervisor learns a moment later than its clients what is ready."""
        deadline = time.monotonic() + timeout_seconds
        while text not in self.output.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        return text in self.output.read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def free_ports_in_a_row(count: int) -> int:
    """Return the first of so many neighbouring ports that nobody listens on."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def start(output: Path, *flags: str) -> Up:
    port, metrics_port = free_port(), free_ports_in_a_row(4)
    command = [STRUCTKV, "up", "--port", str(port), "--metrics-port", str(metrics_port), *flags]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=170)
    return Up(process, url, output, client, metrics_port)
