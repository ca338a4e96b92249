"""Who gets KV memory, in what order, and who has to give it up."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from common.errors import OverloadedError, from_rpc
from common.model.decoder import DecoderModel
from common.skeleton.spec import SkeletonSpec
from services.decode.engine import DecodeEngine
from services.decode.scheduler import DecodeScheduler
from tests.conftest import FULL, StartWorkers, poisoned_pool

LAYERS = 6
ALL = [64] * LAYERS
HALF = [32] * LAYERS
PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


class Queue:
    """A scheduler whose memory is taken, and requests that wait for it."""

    def __init__(self, model: DecoderModel, max_waiting_tokens: int, max_requests: int = 100) -> None:
        self.engine = DecodeEngine(model, poisoned_pool(model, LAYERS * 4))
        self.scheduler = DecodeScheduler(
            self.engine, max_running=4, max_waiting_tokens=max_waiting_tokens, max_requests=max_requests
        )
        self.order: list[str] = []

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        async with self.scheduler.reserve([ALL], 1):
            yield

    async def enter(
        self, name: str, tokens_per_layer: list[int], prompt_tokens: int = 10, priority: int = 0, client: int = 0
    ):
        """Start a request that notes its name once it has its memory; return when it waits."""

        async def wait() -> None:
            async with self.scheduler.reserve([tokens_per_layer], prompt_tokens, priority, client):
                self.order.append(name)
                await asyncio.sleep(0)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task


@pytest.fixture
def queue(model: DecoderModel) -> Queue:
    return Queue(model, max_waiting_tokens=100)


async def test_memory_goes_to_the_most_urgent_then_to_who_came_first(queue: Queue) -> None:
    async with queue.full():
        tasks = [
            await queue.enter("later", ALL, priority=2),
            await queue.enter("first", ALL),
            await queue.enter("second", ALL),
            await queue.enter("urgent", ALL, priority=-1),
        ]
    await asyncio.gather(*tasks)
    assert queue.order == ["urgent", "first", "second", "later"]


async def test_who_fits_passes_one_who_needs_more(queue: Queue) -> None:
    async with AsyncExitStack() as held:
        await held.enter_async_context(queue.scheduler.reserve([HALF], 1))
        big = await queue.enter("big", ALL)
        await (await queue.enter("small", HALF))
        assert queue.order == ["small"]
    await big
    assert queue.order == ["small", "big"]


async def test_who_has_waited_too_long_goes_first_however_urgent_others_are(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.admission._PATIENCE_SECONDS", 0.05)
    async with queue.full():
        patient = await queue.enter("patient", ALL, priority=3)
        await asyncio.sleep(0.1)
        urgent = await queue.enter("urgent", ALL, priority=-9)
    await asyncio.gather(patient, urgent)
    assert queue.order == ["patient", "urgent"]


async def test_memory_freed_while_a_request_gives_up_goes_to_the_next(queue: Queue) -> None:
    async with AsyncExitStack() as held:
        await held.enter_async_context(queue.full())
        leaving, staying = await queue.enter("leaving", ALL), await queue.enter("staying", ALL)
        leaving.cancel()
        await held.aclose()  # before the cancelled one has run again
    await staying
    assert queue.order == ["staying"]
    assert queue.engine.pool.allocator.num_free == queue.engine.pool.allocator.num_blocks


async def test_more_tokens_than_may_wait_are_refused(queue: Queue) -> None:
    async with queue.full():
        tasks = [await queue.enter("long", ALL, prompt_tokens=5000), await queue.enter("refused", ALL)]
        with pytest.raises(OverloadedError, match=r"5000 prompt tokens are queued.*max_waiting_tokens \(100\)"):
            await tasks[1]
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        tasks = [await queue.enter(name, ALL, prompt_tokens=50, client=ord(name)) for name in "ab"]
        with pytest.raises(OverloadedError):
            await (await queue.enter("c", ALL, prompt_tokens=1))
    await asyncio.gather(*tasks)
    assert queue.order == ["a", "b"]


async def test_one_client_leaves_others_room_among_as_many_requests_as_there_may_be(model: DecoderModel) -> None:
    queue = Queue(model, max_waiting_tokens=1000, max_requests=9)
    async with queue.full():
        tasks = [await queue.enter(name, ALL, prompt_tokens=1) for name in "abcdefg"]
        with pytest.raises(OverloadedError, match="8 prompts are here already, 8 of them yours"):
            await (await queue.enter("h", ALL, prompt_tokens=1))
        tasks.append(await queue.enter("i", ALL, prompt_tokens=1, client=1))
    await asyncio.gather(*tasks)
    await (await queue.enter("j", ALL, prompt_tokens=1))
    assert sorted(queue.order) == [*"abcdefgij"]


async def test_a_full_worker_says_so_and_when_to_come_again(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model, num_blocks=LAYERS * 20, max_waiting_tokens=300)
    async with workers.decode.reserve([[20 * 16] * LAYERS], 1):
        two = [asyncio.create_task(workers.tokens(workers.request(PROMPT, 5))) for _ in range(2)]
        (refused,), (waiting,) = await asyncio.wait(two, return_when=asyncio.FIRST_COMPLETED)
        error = refused.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert "max_waiting_tokens" in str(error.details())
        overloaded = from_rpc(error)
        assert isinstance(overloaded, OverloadedError)
        assert overloaded.retry_after_seconds == 1
    assert len(await waiting) == 5
    await workers.until_idle()


async def test_a_full_prefill_worker_is_passed_on_as_such(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model, max_queued_tokens=300)
    blocker = workers.prefill.stream(PROMPT, SkeletonSpec.of(workers.prefill_engine.model.spec, PROMPT, FULL))
    await anext(blocker)
    with pytest.raises(grpc.aio.AioRpcError, match="max_queued_tokens") as refused:
        await workers.tokens(workers.request(PROMPT, 5))
    assert isinstance(from_rpc(refused.value), OverloadedError)
    await blocker.aclose()
    await workers.until_idle()
    assert len(await workers.tokens(workers.request(PROMPT, 5))) == 5


async def test_the_least_urgent_answer_gives_way_when_memory_runs_out(
    model: DecoderModel,
    start_workers: StartWorkers,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.decode.admission._PATIENCE_SECONDS", math.inf)
    caplog.set_level(logging.INFO, logger="services.decode.admission")
    roomy = await start_workers(model)
    expected = await roomy.tokens(roomy.request(PROMPT, 400))
    workers = await start_workers(model, num_blocks=LAYERS * 38 * 2)
    requests = [workers.request(PROMPT, 400) for _ in range(4)]
    for request, priority in zip(requests, (5, 0, 5, -3), strict=True):
        request.priority = priority
    answers = await asyncio.gather(*(workers.tokens(request) for request in requests))
    assert answers == [expected] * 4
    swapped = [record.priority for record in caplog.records if record.message == "sequence swapped out"]
    assert swapped
    assert set(swapped) == {5}
    await workers.until_idle()


async def test_the_deadline_ends_what_waits_for_memory(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model, num_blocks=LAYERS * 20)
    async with workers.decode.reserve([[20 * 16] * LAYERS], 1):
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await workers.stub.Generate(workers.request(PROMPT, 5), timeout=0.2).read()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await workers.until_idle()


async def test_the_deadline_reaches_prefill(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model)
    never = asyncio.Event()

    async def stuck(*_: object):
        await never.wait()
        yield

    monkeypatch.setattr(workers.prefill, "stream", stuck)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await workers.stub.Generate(workers.request(PROMPT, 5), timeout=0.2).read()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await workers.until_idle()


async def test_prefill_learns_how_urgent_a_request_is(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model)
    seen, stream = [], workers.prefill.stream
    monkeypatch.setattr(workers.prefill, "stream", lambda *args: seen.append(args[2]) or stream(*args))
    request = workers.request(PROMPT, 5)
    request.priority = -7
    await workers.tokens(request)
    assert seen == [-7]
