"""What prefill and decode count of a request, whichever way its skeleton takes and however it ends."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from common.transport.redis_store import RedisStore
from services.decode.pool import BLOCK_TOKENS
from services.prefill.faults import Faults
from tests.conftest import StartWorkers, Workers
from tests.samples import Samples, changes, of_registry
from tests.transport.conftest import StoreServer

PROMPT = [(7 * index) % 200 + 5 for index in range(300)]
SKELETON = Selection(kv_retention=0.3, floor_tokens=0, window_tokens=8, block_tokens=0, pivot_layer=3)
PHASES = ("queue", "compute", "select", "encode", "send")
PREFILLED = {"structkv_prefill_tokens_total": len(PROMPT)} | {
    f"structkv_prefill_phase_seconds_count{{phase={phase}}}": 1 for phase in PHASES
}


def received(tokens: int, num_bytes: int, transport: str, *, reused: bool = False) -> Samples:
    """Return what an answer of so many tokens changes in decode."""
    common: Samples = {
        "structkv_request_queue_time_seconds_count": 1,
        "structkv_request_decode_time_seconds_count": 1,
        "structkv_decode_step_seconds_count": tokens,
        "structkv_decode_batch_size_count": tokens,
        "structkv_skeleton_bytes_count{codec=int8}": 1,
        "structkv_skeleton_ratio_count": 1,
        f"structkv_transfer_seconds_count{{transport={transport}}}": 1,
        f"structkv_transfer_bytes_total{{transport={transport},codec=int8}}": num_bytes,
        "structkv_kept_tokens_count": 1,
        "structkv_pivot_layer_count": 1,
    }
    return common | {"structkv_skeletons_reused_total" if reused else "structkv_request_prefill_time_seconds_count": 1}


class Watched:
    """Workers, and what has changed in them since they were last looked at."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._prefill, self._decode = self._look()

    def _look(self) -> tuple[Samples, Samples]:
        return of_registry(self.workers.prefill_registry), of_registry(self.workers.decode_registry)

    async def changes(self) -> tuple[Samples, Samples]:
        await self.workers.until_idle()
        before = self._prefill, self._decode
        self._prefill, self._decode = self._look()
        return changes(before[0], self._prefill), changes(before[1], self._decode)


@pytest.fixture
def start(start_workers: StartWorkers, tiny: Callable[[str], DecoderModel]):
    async def start(**options: object) -> Watched:
        return Watched(await start_workers(tiny("llama"), **options))

    return start


async def test_an_answer_inline(start) -> None:
    watched = await start()
    events = await watched.workers.generate(watched.workers.request(PROMPT, 5, SKELETON))
    assert await watched.changes() == (PREFILLED, received(5, events[0].skeleton.skeleton_bytes, "inline"))


async def test_an_answer_from_the_store_skips_prefill(start, store: RedisStore) -> None:
    watched = await start(store=store)
    request = watched.workers.request(PROMPT, 5, SKELETON)
    num_bytes = (await watched.workers.generate(request))[0].skeleton.skeleton_bytes
    assert await watched.changes() == (PREFILLED, received(5, num_bytes, "redis"))
    await watched.workers.generate(request)
    assert await watched.changes() == ({}, received(5, num_bytes, "redis", reused=True))


async def test_a_store_that_is_down(start, store: RedisStore, server: StoreServer) -> None:
    watched = await start(store=store)
    server.kill()
    events = await watched.workers.generate(watched.workers.request(PROMPT, 5, SKELETON))
    prefill, decode = await watched.changes()
    expected = received(5, events[0].skeleton.skeleton_bytes, "inline")
    assert decode == expected | {"structkv_store_fallbacks_total{reason=failed}": 1}
    assert prefill == PREFILLED


async def test_a_damaging_worker_is_passed_over(start) -> None:
    faulty, sound = await start(faults=Faults.parse("corrupt=1")), await start()
    request = sound.workers.request(PROMPT, 5, SKELETON)
    request.prefill_targets[:] = [faulty.workers.prefill_target, sound.workers.prefill_target]
    events = await sound.workers.generate(request)
    prefill, decode = await sound.changes()
    expected = received(5, events[0].skeleton.skeleton_bytes, "inline")
    assert decode == expected | {"structkv_prefill_failovers_total{reason=data_loss}": 1}
    assert prefill == PREFILLED


@pytest.mark.parametrize("request_kind", ["vocabulary", "model"])
async def test_a_prompt_that_prefill_refuses(request_kind: str, start, tiny: Callable[[str], DecoderModel]) -> None:
    other = {"prefill_model": tiny("qwen2")} if request_kind == "model" else {}
    watched = await start(**other)
    prompt = PROMPT if request_kind == "model" else [*PROMPT, 10**6]
    with pytest.raises(grpc.aio.AioRpcError):
        await watched.workers.generate(watched.workers.request(prompt, 5, SKELETON))
    prefill, decode = await watched.changes()
    reason = "skeleton" if request_kind == "model" else "invalid"
    assert prefill == {f"structkv_prefill_rejected_total{{reason={reason}}}": 1}
    failovers = {"structkv_prefill_failovers_total{reason=data_loss}": 1} if request_kind == "model" else {}
    assert decode == failovers


async def test_a_client_that_leaves_leaves_no_trace_in_the_gauges(start) -> None:
    watched = await start()
    call = watched.workers.stub.Generate(watched.workers.request(PROMPT, 500, SKELETON))
    await call.read()
    during = of_registry(watched.workers.decode_registry)
    assert during["structkv_num_requests_running"] == 1
    assert during["structkv_kv_blocks_used"] > 0
    assert during["structkv_kv_cache_usage_ratio"] == during["structkv_kv_blocks_used"] / 4096
    call.cancel()
    _, decode = await watched.changes()
    assert "structkv_request_decode_time_seconds_count" not in decode
    assert of_registry(watched.workers.decode_registry)["structkv_num_requests_running"] == 0


async def test_gauges_tell_of_who_waits_and_who_was_swapped_out(start) -> None:
    watched = await start()
    pool = watched.workers.decode_engine.pool
    slots = [[pool.allocator.num_blocks // 6 * BLOCK_TOKENS] * 6]
    async with watched.workers.decode.reserve(slots, 1):
        second = asyncio.create_task(watched.workers.generate(watched.workers.request(PROMPT, 2, SKELETON)))
        async with asyncio.timeout(10):
            while not (during := of_registry(watched.workers.decode_registry))["structkv_num_requests_waiting"]:
                await asyncio.sleep(0.001)
        assert during["structkv_num_requests_running"] == 1
    await second
    assert of_registry(watched.workers.decode_registry)["structkv_num_requests_waiting"] == 0


async def test_the_waiting_tokens_of_prefill(start) -> None:
    watched = await start(faults=Faults.parse("delay=1,delay_seconds=30"))
    call = watched.workers.stub.Generate(watched.workers.request(PROMPT, 2, SKELETON))
    async with asyncio.timeout(10):
        while not (during := of_registry(watched.workers.prefill_registry))["structkv_prefill_waiting_tokens"]:
            await asyncio.sleep(0.001)
    assert during["structkv_prefill_waiting_tokens"] == len(PROMPT)
    assert during["structkv_prefill_prompts"] == 1
    call.cancel()
    prefill, _ = await watched.changes()
    assert prefill == {}
