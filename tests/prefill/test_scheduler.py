"""Sharing the prefill worker: fairness, cancellation, bounds."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest
import torch

from common.errors import OverloadedError, WorkerFailedError
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from services.prefill import scheduler as scheduler_module
from services.prefill.engine import PrefillEngine
from services.prefill.scheduler import PrefillScheduler
from tests.families import tiny_model

FULL = Selection(method="full")
LONG, SHORT = [7] * 900, [9] * 20


class Recording(PrefillEngine):
    """Notes which prompt's layer runs when."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__(model)
        self.turns: list[int] = []

    def run(self, token_ids, selection):
        for output in super().run(token_ids, selection):
            self.turns.append(len(token_ids))
            yield output


@pytest.fixture
def engine() -> Recording:
    return Recording(DecoderModel(tiny_model("llama", num_hidden_layers=40), "tiny"))


@pytest.fixture
async def scheduler(engine: Recording) -> AsyncIterator[PrefillScheduler]:
    scheduler = PrefillScheduler(engine, max_queued_tokens=2000)
    loop = asyncio.create_task(scheduler.run())
    yield scheduler
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


def of(scheduler: PrefillScheduler, prompt: list[int]) -> SkeletonSpec:
    return SkeletonSpec.of(scheduler._engine.model.spec, prompt, FULL)


async def drain(
    scheduler: PrefillScheduler,
    prompt: list[int],
    *,
    stop_after: int | None = None,
    priority: int = 0,
    client: int = 0,
) -> int:
    """Read a prompt's events, all or the first few; return how many, but for those that only tell of progress."""
    count = 0
    async with aclosing(scheduler.stream(prompt, of(scheduler, prompt), priority, client=client)) as events:
        async for event in events:
            count += not event.HasField("progress")
            if count == stop_after:
                break
    return count


async def test_a_short_prompt_waits_for_one_step_of_a_long_one(engine: Recording, scheduler: PrefillScheduler) -> None:
    long = asyncio.create_task(drain(scheduler, LONG))
    while len(engine.turns) < 3:
        await asyncio.sleep(0.001)
    arrival = len(engine.turns)
    assert await drain(scheduler, SHORT) == 41
    between = engine.turns[arrival : len(engine.turns) - engine.turns[::-1].index(len(SHORT))]
    # One step may be running, and one is due to the long prompt for every sixteen turns without it.
    assert between.count(len(LONG)) <= 4
    assert await long == 41


async def test_an_urgent_prompt_goes_first_however_long(engine: Recording, scheduler: PrefillScheduler) -> None:
    urgent = asyncio.create_task(drain(scheduler, LONG, priority=-1))
    short = asyncio.create_task(drain(scheduler, SHORT, priority=0))
    assert await urgent == 41
    behind = len(engine.turns) - engine.turns[::-1].index(len(LONG))
    assert engine.turns[:behind].count(len(SHORT)) <= 1 + behind // 16 + behind // 4, (
        "only what nobody is denied for ever"
    )
    assert await short == 41


async def test_a_long_prompt_is_not_passed_over_for_ever(engine: Recording, scheduler: PrefillScheduler) -> None:
    done = asyncio.Event()

    async def keep_busy() -> None:
        while not done.is_set():
            await drain(scheduler, SHORT)

    busy = [asyncio.create_task(keep_busy()) for _ in range(3)]
    await asyncio.wait_for(drain(scheduler, LONG), 30)
    done.set()
    await asyncio.gather(*busy)


async def test_many_prompts_of_a_client_are_no_more_than_one_to_another_client(
    engine: Recording, scheduler: PrefillScheduler
) -> None:
    many = [asyncio.create_task(drain(scheduler, SHORT, client=1)) for _ in range(30)]
    while len(engine.turns) < 3:
        await asyncio.sleep(0.001)
    await drain(scheduler, LONG[:60], client=2)
    done = sum(task.done() for task in many)
    assert done < 10, "the other client's one prompt, though it is longer, is among the first to end"
    assert await asyncio.gather(*many) == [41] * 30


async def test_a_clients_own_prompts_go_by_the_work_left(scheduler: PrefillScheduler) -> None:
    ended: list[int] = []

    async def ask(length: int, client: int) -> None:
        await drain(scheduler, LONG[:length], client=client)
        ended.append(length)

    await asyncio.gather(ask(800, 1), ask(60, 1), ask(700, 2))
    assert ended[0] == 60


async def test_leaving_stops_a_prompt_within_a_step(engine: Recording, scheduler: PrefillScheduler) -> None:
    await drain(scheduler, LONG, stop_after=3)
    turns = len(engine.turns)
    while scheduler.num_jobs:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert len(engine.turns) <= turns + 1


async def test_a_reader_that_does_not_read_holds_up_only_itself(
    engine: Recording, scheduler: PrefillScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_bytes = 900 * 2 * 2 * 16 * 4
    monkeypatch.setattr(scheduler_module, "_OUTBOX_BYTES", 2 * layer_bytes)
    stalled = scheduler.stream(LONG, of(scheduler, LONG))
    await anext(stalled)
    await drain(scheduler, SHORT)
    await asyncio.sleep(0.1)
    assert engine.turns.count(len(LONG)) <= 4, "layers wait until they are read"
    await stalled.aclose()
    assert scheduler.num_jobs == 0


async def test_more_tokens_than_fit_are_refused(scheduler: PrefillScheduler) -> None:
    running = [asyncio.create_task(drain(scheduler, LONG, client=client)) for client in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="1800 prompt tokens are queued"):
        await drain(scheduler, LONG)
    assert await asyncio.gather(*running) == [41, 41]


async def test_a_client_that_fills_the_queue_leaves_room_for_another(scheduler: PrefillScheduler) -> None:
    running = [asyncio.create_task(drain(scheduler, LONG[:100], client=1)) for _ in range(17)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="1700 of them yours"):
        await drain(scheduler, LONG[:100], client=1)
    assert await drain(scheduler, LONG[:100], client=2) == 41
    assert await asyncio.gather(*running) == [41] * 17


async def test_who_leaves_while_it_is_found_out_why_a_prompt_failed_ends_nothing(
    engine: Recording, scheduler: PrefillScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, try_out, trying = engine.run, engine.try_out, threading.Event()

    def broken(token_ids, selection):
        if token_ids == SHORT:
            raise MemoryError("too much for this one")
        yield from run(token_ids, selection)

    def slow() -> None:
        trying.set()
        time.sleep(0.2)
        try_out()

    monkeypatch.setattr(engine, "run", broken)
    monkeypatch.setattr(engine, "try_out", slow)
    leaving = asyncio.create_task(drain(scheduler, SHORT))
    while not trying.is_set():
        await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await drain(scheduler, LONG) == 41
    assert scheduler.num_jobs == scheduler.num_tokens == 0


async def test_an_error_of_a_prompt_reaches_its_caller_and_nobody_else(
    engine: Recording, scheduler: PrefillScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run

    def broken(token_ids, selection):
        if token_ids == SHORT:
            raise MemoryError("too much for this one")
        yield from run(token_ids, selection)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", broken)
        long = asyncio.create_task(drain(scheduler, LONG))
        with pytest.raises(MemoryError):
            await drain(scheduler, SHORT)
        assert await long == 41
    assert scheduler.num_jobs == 0
    assert await drain(scheduler, SHORT) == 41


async def test_a_worker_that_can_compute_nothing_ends_all_and_itself(engine: Recording) -> None:
    scheduler = PrefillScheduler(engine, max_queued_tokens=2000)
    main_loop = asyncio.create_task(scheduler.run())
    running = asyncio.create_task(drain(scheduler, LONG))
    while len(engine.turns) < 3:
        await asyncio.sleep(0.001)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    engine.model.layer = fail  # type: ignore[method-assign]
    for ended in (running, main_loop):
        with pytest.raises(WorkerFailedError, match="can no longer compute: OutOfMemoryError"):
            await ended
    with pytest.raises(WorkerFailedError):
        await drain(scheduler, SHORT)
