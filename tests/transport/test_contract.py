"""What holds whichever way a skeleton takes: a right answer, and nothing left behind."""

import asyncio
from collections.abc import Callable

import grpc
import pytest
from redis.asyncio import Redis

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from common.transport.redis_store import RedisStore
from services.prefill.faults import Faults
from tests.conftest import FULL, StartWorkers, Workers
from tests.transport.conftest import until_no_layers

PROMPT = [(7 * index) % 200 + 5 for index in range(300)]
SKELETON = Selection(kv_retention=0.3, floor_tokens=0, window_tokens=8, block_tokens=0)

pytestmark = pytest.mark.parametrize("transport", ["inline", "redis"])


@pytest.fixture
def start(transport: str, store: RedisStore, start_workers: StartWorkers, tiny: Callable[[str], DecoderModel]):
    """Return a function that starts workers of a tiny model on the transport."""

    async def start(family: str = "llama", **options: object) -> Workers:
        return await start_workers(tiny(family), store=store if transport == "redis" else None, **options)

    return start


@pytest.mark.parametrize("selection", [FULL, SKELETON], ids=["full", "skeleton"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_the_answer_does_not_depend_on_the_way(
    selection: Selection, family: str, transport: str, start, start_workers: StartWorkers, tiny
) -> None:
    expected = await start_workers(tiny(family))
    tokens = await expected.tokens(expected.request(PROMPT, 8, selection))
    workers = await start(family)
    events = await workers.generate(workers.request(PROMPT, 8, selection))
    assert [token for event in events for token in event.token_ids] == tokens
    assert events[0].skeleton.transport == transport
    assert events[0].skeleton.cached_tokens == 0
    await workers.until_idle()


async def test_the_same_prompt_skips_prefill_where_there_is_a_store(transport: str, start) -> None:
    workers = await start()
    first = await workers.generate(workers.request(PROMPT, 8, SKELETON))
    again = await workers.generate(workers.request(PROMPT, 8, SKELETON))
    assert [event.token_ids for event in again] == [event.token_ids for event in first]
    assert again[0].skeleton.cached_tokens == (len(PROMPT) if transport == "redis" else 0)
    assert again[0].skeleton.kept_tokens_per_layer == first[0].skeleton.kept_tokens_per_layer
    assert again[0].skeleton.pivot_layer == first[0].skeleton.pivot_layer


@pytest.mark.parametrize("change", ["token", "selection"])
async def test_another_prompt_or_selection_does_not(change: str, start) -> None:
    workers = await start()
    await workers.generate(workers.request(PROMPT, 2, SKELETON))
    prompt = [*PROMPT[:-1], 9] if change == "token" else PROMPT
    selection = Selection(kv_retention=0.4, floor_tokens=0) if change == "selection" else SKELETON
    (first, *_) = await workers.generate(workers.request(prompt, 2, selection))
    assert first.skeleton.cached_tokens == 0


@pytest.mark.parametrize("fault", ["drop", "truncate", "corrupt"])
async def test_damage_is_noticed_and_named(fault: str, start) -> None:
    workers = await start(faults=Faults.parse(f"{fault}=1"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await workers.generate(workers.request(PROMPT, 4, SKELETON))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "no prefill worker delivered the skeleton" in (caught.value.details() or "")
    await workers.until_idle()


@pytest.mark.parametrize("fault", ["drop", "truncate", "corrupt"])
async def test_a_sound_worker_takes_over_from_one_that_damages(fault: str, start) -> None:
    faulty, sound = await start(faults=Faults.parse(f"{fault}=0.3,seed=4")), await start()
    request = sound.request(PROMPT, 8, SKELETON)
    expected = await sound.tokens(request)
    request = sound.request([*PROMPT[1:], 5], 8, SKELETON)
    expected = await (await start()).tokens(request)
    request.prefill_targets[:] = [faulty.prefill_target, sound.prefill_target]
    for _ in range(5):
        assert await faulty.tokens(request) == expected
    await faulty.until_idle()


async def test_late_chunks_are_only_late(start) -> None:
    workers = await start(faults=Faults.parse("delay=1,delay_seconds=0.01"))
    assert len(await workers.tokens(workers.request(PROMPT, 4, SKELETON))) == 4


async def test_a_stalled_worker_is_passed_over(start, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = await start(stall_seconds=0.5)
    sound = await start()
    monkeypatch.setattr(type(stalled.prefill), "makes_progress", property(lambda self: self is not stalled.prefill))
    monkeypatch.setattr("services.prefill.scheduler._PROGRESS_SECONDS", 0.1)
    hold = asyncio.Event()
    release = asyncio.get_running_loop()

    def stuck(*_: object):
        asyncio.run_coroutine_threadsafe(hold.wait(), release).result(20)
        yield None

    monkeypatch.setattr(stalled.prefill_engine, "run", stuck)
    request = sound.request(PROMPT, 4, SKELETON)
    request.prefill_targets[:] = [stalled.prefill_target, sound.prefill_target]
    assert await stalled.tokens(request) == await sound.tokens(sound.request(PROMPT, 4, SKELETON))
    hold.set()
    await stalled.until_idle()


async def test_a_busy_worker_is_not_taken_for_a_stalled_one(start, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = await start(stall_seconds=0.5)
    monkeypatch.setattr("services.prefill.scheduler._PROGRESS_SECONDS", 0.1)
    run = workers.prefill_engine.run

    def slow(*arguments: object):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(1.2), loop).result()
        yield from run(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(workers.prefill_engine, "run", slow)
    assert len(await workers.tokens(workers.request(PROMPT, 4, SKELETON))) == 4


@pytest.mark.parametrize("after_layers", [0, 1, 3])
async def test_a_prompt_that_is_cancelled_leaves_nothing(
    after_layers: int, start, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start()
    reached, go_on = asyncio.Event(), asyncio.Event()
    loop, run = asyncio.get_running_loop(), workers.prefill_engine.run

    def halting(*arguments: object):
        layers = 0
        for output in run(*arguments):
            if layers == after_layers:
                loop.call_soon_threadsafe(reached.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            layers += output is not None
            yield output

    monkeypatch.setattr(workers.prefill_engine, "run", halting)
    asking = asyncio.create_task(workers.tokens(workers.request(PROMPT, 4, SKELETON)))
    await reached.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(10):  # the news has two calls to go
        while not all(job.cancelled for job in workers.prefill._jobs):
            await asyncio.sleep(0.01)
    go_on.set()
    await workers.until_idle()
    await until_no_layers(client)
    assert not await client.keys("structkv:skeleton:*")
    assert not await client.zcard("structkv:reserved")
