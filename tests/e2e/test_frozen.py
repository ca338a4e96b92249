"""A process that is stopped but not dead: its connections stand, and it says nothing. A small random model answers."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.load import Request, ask
from tests.e2e.conftest import free_port
from tests.e2e.processes import Process, small_model

MOST_SECONDS = 25
"""Two health checks or ten seconds of prefill's silence, then all again, on a busy machine. Frozen it is for good."""


@dataclass
class Service:
    """A gateway, two workers of each kind, and the ports of the workers' metrics."""

    gateway: Process
    workers: dict[str, Process]
    metrics_ports: dict[str, int]

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        running = self.workers[name].running
        assert running is not None
        running.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            running.send_signal(signal.SIGCONT)

    async def metric(self, name: str, metric: str) -> float:
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://127.0.0.1:{self.metrics_ports[name]}/metrics")
        samples = [s for f in text_string_to_metric_families(reply.text) for s in f.samples if s.name == metric]
        return sum(sample.value for sample in samples)

    async def busy(self, kind: str, metric: str) -> str:
        """Wait until a worker of a kind has something to do; return its name."""
        async with asyncio.timeout(60):
            while True:
                for name in (name for name in self.workers if name.startswith(kind)):
                    if await self.metric(name, metric):
                        return name

    async def idle(self, name: str, metric: str) -> None:
        async with asyncio.timeout(15):
            while await self.metric(name, metric):
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("frozen")
    model = ["--model", str(small_model(folder / "model"))]
    names = ("prefill-1", "prefill-2", "decode-1", "decode-2")
    ports = {name: free_port() for name in names}
    workers = {
        name: Process(name[:-2], [*model, "--threads", "1", "--metrics-port", str(ports[name])], folder / f"{name}.log")
        for name in names
    }
    flags = [*model, "--served-model-name", "smollm2-135m-instruct"]
    for kind in ("prefill", "decode"):
        flags += [f"--{kind}-workers", ",".join(workers[f"{kind}-{number}"].address for number in (1, 2))]
    gateway = Process("gateway", flags, folder / "gateway.log")
    everybody = [*workers.values(), gateway]
    try:
        for process in everybody:
            process.start()
        for process in everybody:
            process.wait_until_serving()
        yield Service(gateway, workers, ports)
    finally:
        for process in everybody:
            process.kill()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{service.gateway.address}", timeout=120) as client:
        yield client


async def pieces(client: httpx.AsyncClient, request: Request) -> AsyncIterator[str]:
    """Yield a streamed answer's pieces as they come."""
    async with client.stream("POST", "/v1/completions", json=request.body()) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]


@pytest.mark.parametrize(("tokens", "temperature"), [(1, 0.0), (20, 0.9)])
async def test_a_frozen_decode_worker_loses_its_answers(
    tokens: int, temperature: float, service: Service, client: httpx.AsyncClient
) -> None:
    request = Request(f"Frozen after {tokens}.", temperature, seed=0, max_tokens=300)
    text, num_pieces, arrived, longest = "", 0, time.monotonic(), 0.0
    with ExitStack() as stack:
        async for piece in pieces(client, request):
            longest, arrived = max(longest, time.monotonic() - arrived), time.monotonic()
            text, num_pieces = text + piece, num_pieces + 1
            if num_pieces == tokens:
                victim = await service.busy("decode", "structkv_kv_blocks_used")
                stack.enter_context(service.frozen(victim))
    assert longest < MOST_SECONDS
    await service.idle(victim, "structkv_kv_blocks_used")  # what it was asked for is called off
    assert text == await ask(client, request)
    assert service.gateway.said(message="worker is given up", worker=service.workers[victim].address)


def short_requests(name: str) -> list[Request]:
    return [Request(f"{name} {number}.", 0.0, seed=0, max_tokens=4) for number in range(4)]


async def test_a_decode_worker_frozen_before_the_first_token(service: Service, client: httpx.AsyncClient) -> None:
    requests, started = short_requests("Decode"), time.monotonic()
    with service.frozen("decode-1"):
        answers = await asyncio.gather(*(ask(client, request) for request in requests))
        assert time.monotonic() - started < MOST_SECONDS
    await service.idle("decode-1", "structkv_kv_blocks_used")
    assert answers == [await ask(client, request) for request in requests]


async def test_a_frozen_prefill_worker_is_passed_over(service: Service, client: httpx.AsyncClient) -> None:
    requests, started = short_requests("Prefill"), time.monotonic()
    with service.frozen("prefill-1"):
        answers = await asyncio.gather(*(ask(client, request) for request in requests))
        assert time.monotonic() - started < MOST_SECONDS
        again = time.monotonic()
        assert answers == [await ask(client, request) for request in requests]
        assert time.monotonic() - again < MOST_SECONDS, "it is not asked first again"
    await service.idle("prefill-1", "structkv_prefill_prompts")
