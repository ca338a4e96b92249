"""Whose fault a failure is: a request that breaks the step fails alone, a worker that cannot compute ends."""

import asyncio

import grpc
import pytest
import torch

from common.errors import UnavailableError, WorkerFailedError, from_rpc
from common.model.decoder import DecoderModel
from services.decode.pool import KVPool
from tests.conftest import StartWorkers, Workers
from tests.families import tiny_model

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(60)]


@pytest.fixture
def model() -> DecoderModel:
    return DecoderModel(tiny_model("llama"), "tiny")


def poison(workers: Workers, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Have every step fail that has an answer with this seed in it."""
    step = workers.decode_engine.step

    def breaking(batch):
        if any(sequence.answer.sampling.seed == seed for sequence in batch):
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return step(batch)

    monkeypatch.setattr(workers.decode_engine, "step", breaking)


async def test_a_request_that_breaks_the_step_fails_alone(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model)
    requests = [workers.request(PROMPT, 30, temperature=1.0, seed=seed) for seed in range(5)]
    expected = [await workers.tokens(request) for request in requests]
    poison(workers, monkeypatch, seed=2)
    results = await asyncio.gather(*(workers.tokens(request) for request in requests), return_exceptions=True)
    failure = results.pop(2)
    assert isinstance(failure, grpc.aio.AioRpcError)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert results == expected[:2] + expected[3:]
    with pytest.raises(grpc.aio.AioRpcError):
        await workers.tokens(requests[2])
    assert await workers.tokens(requests[0]) == expected[0], "alone as well it does not take the worker with it"
    await workers.until_idle()


async def test_a_worker_that_can_compute_nothing_ends_and_says_so_to_all(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    prefill_model = DecoderModel(tiny_model("llama"), "tiny")
    workers = await start_workers(model, num_blocks=6 * 30, prefill_model=prefill_model)
    running = [asyncio.create_task(workers.tokens(workers.request(PROMPT, 200))) for _ in range(6)]
    while workers.decode.num_running < 2:
        await asyncio.sleep(0.001)

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.layer = fail  # type: ignore[method-assign]
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, grpc.aio.AioRpcError)
        assert isinstance(from_rpc(result), UnavailableError)
    with pytest.raises(grpc.aio.AioRpcError, match="can no longer compute") as refused:
        await workers.tokens(workers.request(PROMPT, 5))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(WorkerFailedError):
        await workers.decode_loop


async def test_where_a_skeleton_cannot_be_taken_the_worker_is_tried_out(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model)

    def no_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(KVPool, "write", no_memory)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await workers.tokens(workers.request(PROMPT, 5))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert len(await workers.tokens(workers.request(PROMPT, 5))) == 5
    monkeypatch.setattr(KVPool, "write", no_memory)
    monkeypatch.setattr(workers.decode_engine, "try_out", no_memory)
    with pytest.raises(grpc.aio.AioRpcError, match="can no longer compute"):
        await workers.tokens(workers.request(PROMPT, 5))
    with pytest.raises(WorkerFailedError):
        await workers.decode_loop


async def test_without_host_memory_for_what_gives_way_only_that_ends(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model, num_blocks=6 * 30)

    def no_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(KVPool, "copy_out", no_memory)
    requests = [workers.request(PROMPT, 300) for _ in range(2)]
    results = await asyncio.gather(*(workers.tokens(request) for request in requests), return_exceptions=True)
    (failure,) = (result for result in results if isinstance(result, grpc.aio.AioRpcError))
    assert isinstance(from_rpc(failure), UnavailableError)
    assert [len(result) for result in results if isinstance(result, list)] == [300]
    await workers.until_idle()
