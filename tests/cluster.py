"""The whole service as separate processes that may be killed and started again, each at its own address."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from common.rpc import is_serving, open_channel
from services import embedded_store

STRUCTKV = str(Path(sys.executable).with_name("structkv"))
HOST = "127.0.0.1"
_START_SECONDS = 120


def free_port() -> int:
    with socket.create_server((HOST, 0)) as held:
        return held.getsockname()[1]


@dataclass
class Member:
    """One process: what it is, how it is started, and how it tells that it is ready."""

    name: str
    command: list[str]
    port: int
    is_ready: Callable[[], Awaitable[bool]]
    metrics_port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


class Cluster:
    """A gateway, prefill and decode workers and a store; a context manager that ends them all."""

    def __init__(
        self,
        folder: Path,
        *,
        prefill: int = 2,
        decode: int = 2,
        worker_flags: tuple[str, ...] = (),
        decode_flags: tuple[str, ...] = (),
        gateway_flags: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.store_port = free_port()
        self.members: dict[str, Member] = {}
        store = Member("store", embedded_store.command(self.store_port, 256), self.store_port, self._store_is_ready)
        self.members["store"] = store
        for number in range(1, prefill + 1):
            self._add_worker(f"prefill-{number}", worker_flags)
        for number in range(1, decode + 1):
            self._add_worker(f"decode-{number}", worker_flags + decode_flags)
        self._add_gateway(gateway_flags)

    def _add_worker(self, name: str, flags: tuple[str, ...]) -> None:
        port, metrics_port = free_port(), free_port()
        command = [STRUCTKV, name.partition("-")[0], "--port", str(port), "--metrics-port", str(metrics_port)]
        command += ["--transport", "redis", "--threads", "1", *flags]

        async def is_ready() -> bool:
            async with open_channel(f"{HOST}:{port}") as channel:
                return await is_serving(channel, 2)

        environment = {"REDIS_URL": f"redis://{HOST}:{self.store_port}"}
        self.members[name] = Member(name, command, port, is_ready, metrics_port, environment)

    def _add_gateway(self, flags: tuple[str, ...]) -> None:
        port = free_port()
        command = [STRUCTKV, "gateway", "--port", str(port), *flags]
        for kind in ("prefill", "decode"):
            command += [f"--{kind}-workers", ",".join(member.address for member in self.of(kind))]

        async def is_ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"http://{HOST}:{port}/ready")).status_code == 200
            return False

        self.members["gateway"] = Member("gateway", command, port, is_ready, port)

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self.start(name) for name in self.members if name != "gateway"))
            await self.start("gateway")
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for member in self.members.values():
            if member.process is not None:
                member.process.kill()
                member.process.wait()

    @property
    def url(self) -> str:
        return f"http://{self.members['gateway'].address}"

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members.values() if member.kind == kind]

    async def start(self, name: str) -> None:
        """Start a member and wait until it is ready."""
        member = self.members[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            environment = {**os.environ, **member.environment}
            member.process = subprocess.Popen(member.command, stdout=log, stderr=log, env=environment)  # noqa: ASYNC220
        async with asyncio.timeout(_START_SECONDS):
            while not await member.is_ready():
                assert member.process.poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
                await asyncio.sleep(0.1)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a member a signal; SIGKILL is over when this returns."""
        process = self.members[name].process
        assert process is not None
        process.send_signal(signum)
        if signum == signal.SIGKILL:
            process.wait()

    async def ended(self, name: str, timeout_seconds: float = 60) -> int:
        """Wait until a member has ended; return its exit code."""
        process = self.members[name].process
        assert process is not None
        return await asyncio.to_thread(process.wait, timeout_seconds)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    async def metrics(self, name: str) -> dict[str, float]:
        """Return a member's samples, those of one name added up."""
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://{HOST}:{self.members[name].metrics_port}/metrics")
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(reply.text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
        return totals

    def store_client(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(host=HOST, port=self.store_port)

    async def _store_is_ready(self) -> bool:
        try:
            async with self.store_client() as client:
                return bool(await client.ping())
        except redis.exceptions.RedisError:
            return False
