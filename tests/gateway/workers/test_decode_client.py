"""A call holds its share of the workers for as long as it runs, and no longer."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from common.errors import DeadlineError
from common.pb import decode_pb2
from services.gateway.workers.decode_client import DecodeCall, DecodeClient
from services.gateway.workers.routing import WorkerPool
from tests.gateway.conftest import ScriptedDecode, events, grpc_worker

REQUEST = decode_pb2.GenerateRequest(
    prompt_token_ids=[1] * 100, sampling=decode_pb2.Sampling(max_tokens=10), answers=[decode_pb2.AnswerSoFar()]
)


async def all_events(call: DecodeCall) -> list[decode_pb2.GenerateEvent]:
    events = []
    while (event := await call.read()) is not None:
        events.append(event)
    return events


class Bench:
    """A client, its one scripted worker, and both pools."""

    def __init__(self, worker: ScriptedDecode, decode: WorkerPool, prefill: WorkerPool) -> None:
        self.worker = worker
        self.client = DecodeClient(decode, prefill, worker_wait_seconds=0)
        self._pools = (decode, prefill)

    async def in_flight(self) -> tuple[int, int]:
        """Return the tokens of the decode and of the prefill worker."""
        first, second = [(await pool.candidates())[0].in_flight_tokens for pool in self._pools]
        return first, second

    async def open(self, seconds: float = 10):
        request = decode_pb2.GenerateRequest()
        request.CopyFrom(REQUEST)
        return await self.client.open(request, time.monotonic() + seconds)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    worker = ScriptedDecode([0.2, *events([5, 6])])
    async with grpc_worker(worker) as decode_address, grpc_worker() as prefill_address:
        options = {"interval_seconds": 60.0, "timeout_seconds": 2.0}
        async with (
            WorkerPool("decode", [decode_address], **options) as decode,
            WorkerPool("prefill", [prefill_address], **options) as prefill,
        ):
            yield Bench(worker, decode, prefill)


async def test_prefill_is_busy_until_the_first_token_and_decode_until_the_end(bench: Bench) -> None:
    opening = asyncio.create_task(bench.open())
    await asyncio.sleep(0.1)
    assert await bench.in_flight() == (110, 100)
    call = await opening
    assert await bench.in_flight() == (110, 0)
    assert [list(event.token_ids) for event in await all_events(call)] == [[5], [6]]
    call.close()
    call.close()
    assert await bench.in_flight() == (0, 0)


async def test_a_call_closed_early_is_cancelled(bench: Bench) -> None:
    bench.worker.script.append(30.0)
    bench.worker.script[2].finish_reason = 0
    call = await bench.open()
    call.close()
    assert await bench.in_flight() == (0, 0)
    async with asyncio.timeout(1):
        await bench.worker.cancelled.wait()


async def test_a_client_that_leaves_before_the_first_token_leaves_nothing(bench: Bench) -> None:
    bench.worker.script = [30.0]
    opening = asyncio.create_task(bench.open())
    await asyncio.sleep(0.1)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert await bench.in_flight() == (0, 0)
    async with asyncio.timeout(1):
        await bench.worker.cancelled.wait()


async def test_no_call_is_made_when_the_time_is_over(bench: Bench) -> None:
    with pytest.raises(DeadlineError):
        await bench.open(seconds=0)
    assert not bench.worker.requests
