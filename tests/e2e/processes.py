"""The services as processes of their own, with a small random model, so that each can be stopped and started."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from common.model.source import resolve
from common.rpc import is_serving, open_channel
from tests.e2e.conftest import MODEL, STRUCTKV, free_port
from tests.families import tiny_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def small_model(folder: Path) -> Path:
    """Write a random model with the default model's tokenizer: it computes in no time, whatever it says."""
    source = resolve(MODEL, weights=False)
    vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]
    tiny_model("llama", vocab_size=vocab_size, max_position_embeddings=8192).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder


@dataclass
class Process:
    """One service: how it is started, at the same port every time."""

    kind: str
    flags: list[str]
    log: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    running: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and do not wait."""
        command = [STRUCTKV, self.kind, "--port", str(self.port), *self.flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environment
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def stop(self, timeout_seconds: float = 60) -> int:
        """Ask it to stop, as a supervisor would; return its exit code."""
        assert self.running is not None
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(timeout_seconds)

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def is_serving(self) -> bool:
        """Ask as a health check would."""
        assert self.running is not None
        assert self.running.poll() is None, f"{self.kind} ended: {self.log.read_text()[-2000:]}"
        if self.kind != "gateway":
            return asyncio.run(_answers_health(self.address))
        try:
            return httpx.get(f"http://{self.address}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_serving(self) -> None:
        wait_for(self.is_serving)

    def said(self, **entry: str) -> int:
        """Count the entries of its log that have all of these."""
        lines = (line for line in self.log.read_text().splitlines() if line.startswith("{"))
        return sum(entry.items() <= json.loads(line).items() for line in lines)


async def _answers_health(address: str) -> bool:
    async with open_channel(address) as channel:
        return await is_serving(channel, timeout_seconds=2)


def wait_for(condition: Callable[[], bool], timeout_seconds: float = 180) -> None:
    """Wait for something that nothing announces; fail if it does not come."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
