"""A worker that says nothing any more loses its calls to another one; one that is merely late, or drains, does not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import DeadlineError
from common.pb import decode_pb2_grpc
from services.gateway.workers.decode_client import DecodeClient
from services.gateway.workers.routing import WorkerPool
from tests.gateway.conftest import ScriptedDecode, events, grpc_worker, until
from tests.gateway.workers.test_failover import ANSWER, Continuing, answer, request

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Silent(ScriptedDecode):
    """Sends so many tokens and then nothing, until it is let go."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.script = [*events(ANSWER)[:tokens], self.let_go, *events(ANSWER)[tokens:]]


class BlackHole:
    """A connection's way to a worker, which can be cut without a word to either end."""

    def __init__(self, target: str) -> None:
        self._host, port = target.split(":")
        self._port = int(port)
        self._open = asyncio.Event()
        self._open.set()
        self._relays: set[asyncio.Task[None]] = set()

    def vanish(self) -> None:
        self._open.clear()

    def come_back(self) -> None:
        self._open.set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection(self._host, self._port)
        self._relays |= {asyncio.create_task(self._relay(*pair)) for pair in ((reader, before), (behind, writer))}

    async def _relay(self, source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._open.wait()
                drain.write(data)
                await drain.drain()
        finally:
            drain.close()

    async def close(self) -> None:
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)


@asynccontextmanager
async def behind_a_black_hole(worker: ScriptedDecode) -> AsyncIterator[tuple[str, BlackHole]]:
    async with grpc_worker(worker) as target:
        hole = BlackHole(target)
        server = await asyncio.start_server(hole, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", hole
        finally:
            server.close()
            await hole.close()


@asynccontextmanager
async def client_of(*addresses: str, timeout_seconds: float = 0.4) -> AsyncIterator[DecodeClient]:
    """Open a client that checks its workers often; of idle ones the first is asked first."""
    options = {"interval_seconds": 0.1, "timeout_seconds": timeout_seconds}
    async with (
        grpc_worker() as prefill_address,
        WorkerPool("decode", addresses, **options) as decode,
        WorkerPool("prefill", [prefill_address], **options) as prefill,
    ):
        yield DecodeClient(decode, prefill, worker_wait_seconds=5)


@pytest.mark.parametrize("tokens", [0, 1, 4])
async def test_a_worker_whose_network_vanishes_loses_its_calls(tokens: int) -> None:
    worker, other = Silent(tokens), Continuing()
    async with (
        behind_a_black_hole(worker) as (address, hole),
        grpc_worker(other) as other_address,
        client_of(address, other_address) as client,
    ):
        asking = asyncio.create_task(answer(client))

        async def is_asked() -> bool:
            return bool(worker.requests)

        await until(is_asked)
        vanished = time.monotonic()
        hole.vanish()
        assert await asking == ANSWER
        assert time.monotonic() - vanished < 10
        (resumed,) = other.requests
        assert list(resumed.answers[0].token_ids) == ANSWER[:tokens]
        hole.come_back()
        await asyncio.wait_for(worker.cancelled.wait(), 5)


async def test_one_late_answer_is_no_reason() -> None:
    worker, other = Silent(2), Continuing()
    async with (
        behind_a_black_hole(worker) as (address, hole),
        grpc_worker(other) as other_address,
        client_of(address, other_address, timeout_seconds=1) as client,
    ):
        asking = asyncio.create_task(answer(client))

        async def is_asked() -> bool:
            return bool(worker.requests)

        await until(is_asked)
        hole.vanish()
        await asyncio.sleep(1.2)  # longer than one check may take
        hole.come_back()
        await asyncio.sleep(1)
        worker.let_go.set()
        assert await asking == ANSWER
        assert other.requests == []


async def test_the_only_worker_keeps_its_calls() -> None:
    worker = Silent(2)
    async with behind_a_black_hole(worker) as (address, hole), client_of(address) as client:
        asking = asyncio.create_task(answer(client))

        async def is_asked() -> bool:
            return bool(worker.requests)

        await until(is_asked)
        hole.vanish()
        await asyncio.sleep(2)
        hole.come_back()
        worker.let_go.set()
        assert await asking == ANSWER
        assert len(worker.requests) == 1


class Health(health.aio.HealthServicer):
    """A health service whose word can be changed."""

    async def say(self, status: int) -> None:
        await self.set("", status)


@asynccontextmanager
async def worker_with_health(worker: ScriptedDecode) -> AsyncIterator[tuple[str, Health]]:
    server, status = grpc.aio.server(), Health()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    decode_pb2_grpc.add_DecodeServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await status.say(SERVING)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", status
    finally:
        await server.stop(None)


async def test_a_worker_that_hangs_and_says_so_loses_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.workers.worker._NOT_SERVING_SECONDS", 0.5)
    worker, other = Silent(2), Continuing()
    async with (
        worker_with_health(worker) as (address, status),
        grpc_worker(other) as other_address,
        client_of(address, other_address) as client,
    ):
        call = await client.open(request(), time.monotonic() + 20)
        await status.say(NOT_SERVING)
        token_ids: list[int] = []
        while (event := await call.read()) is not None:
            token_ids += event.token_ids
        call.close()
        assert token_ids == ANSWER
        assert len(other.requests) == 1
        await asyncio.wait_for(worker.cancelled.wait(), 5)


async def test_a_worker_that_drains_finishes_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.workers.worker._NOT_SERVING_SECONDS", 1.0)
    worker, other = ScriptedDecode(), Continuing()
    worker.script = [step for event in events(ANSWER) for step in (event, 0.3)]
    async with (
        worker_with_health(worker) as (address, status),
        grpc_worker(other) as other_address,
        client_of(address, other_address) as client,
    ):
        call = await client.open(request(), time.monotonic() + 20)
        await status.say(NOT_SERVING)
        while await call.read() is not None:
            pass
        call.close()
        assert other.requests == []


async def test_a_client_that_leaves_meanwhile_is_let_go() -> None:
    worker = Silent(1)
    async with behind_a_black_hole(worker) as (address, hole), client_of(address) as client:
        call = await client.open(request(), time.monotonic() + 20)
        await call.read()
        hole.vanish()
        reading = asyncio.create_task(call.read())
        await asyncio.sleep(0.1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        call.close()


async def test_the_deadline_holds_where_nobody_else_serves() -> None:
    async with behind_a_black_hole(Silent(2)) as (address, hole), client_of(address) as client:
        call = await client.open(request(), time.monotonic() + 3)
        await call.read()
        await call.read()
        hole.vanish()
        with pytest.raises(DeadlineError):
            await call.read()
