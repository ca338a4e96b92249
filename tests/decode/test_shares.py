"""What one request may take of a decode worker while others want some of it."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from services.decode.step_cost import StepCost
from tests.conftest import FULL, StartWorkers, Workers
from tests.decode.test_several_answers import alone, answers, asking

LAYERS = 6
PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]
SHORT = PROMPT[:40]


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


Call = grpc.aio.UnaryStreamCall[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]


async def begun(workers: Workers, request: decode_pb2.GenerateRequest) -> Call:
    """Start a request; return when it has its first token."""
    call = workers.stub.Generate(request)
    await call.read()
    return call


async def test_as_many_answers_as_there_may_be_begin_beside_a_running_one(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model, max_running=4)
    stream = await begun(workers, workers.request(PROMPT, 800))
    many = asyncio.create_task(answers(workers, asking(workers.request(PROMPT, 30, temperature=1.0), 4)))
    for _ in range(3):
        assert len(await workers.tokens(workers.request(SHORT, 5))) == 5
    assert len(await many) == 4
    assert not stream.done()
    stream.cancel()
    await workers.until_idle()


async def test_answers_beyond_the_first_give_their_places_to_others(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model, max_running=4)
    many = [await begun(workers, asking(workers.request(PROMPT, 800), 4)) for _ in range(3)]
    assert len(await workers.tokens(workers.request(SHORT, 5))) == 5
    for call in many:
        assert not call.done()
        call.cancel()
    await workers.until_idle()


async def test_answers_beyond_the_first_give_their_memory_to_others(
    model: DecoderModel, start_workers: StartWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="services.decode.admission")
    # Three answers of 150 tokens behind 201 that share a skeleton fill it, and one is left out.
    workers = await start_workers(model, num_blocks=LAYERS * 42)
    wish = {"temperature": 1.0, "seed": 5}
    roomy = await start_workers(model)
    expected = await answers(roomy, asking(roomy.request(PROMPT, 150, **wish), 3))
    many = asyncio.create_task(answers(workers, asking(workers.request(PROMPT, 150, **wish), 3)))
    while workers.decode.num_running == 0:
        await asyncio.sleep(0.001)
    assert len(await workers.tokens(workers.request(PROMPT, 5))) == 5
    assert not many.done(), "it did not have to wait for them"
    assert await many == expected
    assert "sequence swapped out" in caplog.messages
    await workers.until_idle()


async def test_who_has_a_turn_does_not_give_way_in_it(
    model: DecoderModel, start_workers: StartWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    """Turns and memory have orders of their own: further answers have their turns, and the last of all gives way."""
    caplog.set_level("INFO", logger="services.decode.admission")
    dear = StepCost(base=1.0, each=0.5)
    roomy = await start_workers(model, step_cost=dear)
    wish = {"temperature": 1.0, "seed": 5}
    expected = await answers(roomy, asking(roomy.request(PROMPT, 150, **wish), 4))
    tight = await start_workers(model, num_blocks=LAYERS * 56, step_cost=dear)
    urgent = asyncio.create_task(answers(tight, asking(tight.request(PROMPT, 150, **wish), 4)))
    patient = [tight.request(PROMPT, 150) for _ in range(2)]
    for client, request in enumerate(patient, 1):
        request.priority, request.client = 5, client
    others = await asyncio.gather(*(tight.tokens(request) for request in patient))
    assert await urgent == expected
    assert all(tokens == others[0] for tokens in others)
    assert "sequence swapped out" in caplog.messages
    await tight.until_idle()


async def test_a_large_request_is_not_passed_for_ever(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.admission._PATIENCE_SECONDS", 0.3)
    workers = await start_workers(model, num_blocks=LAYERS * 24)
    done = asyncio.Event()
    served = 0

    async def keep_busy() -> None:
        nonlocal served
        while not done.is_set():
            await workers.tokens(workers.request(SHORT, 40))
            served += 1

    busy = [asyncio.create_task(keep_busy()) for _ in range(4)]
    while served < 4:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(60):
        assert len(await workers.tokens(workers.request(PROMPT, 150))) == 150
    done.set()
    await asyncio.gather(*busy)
    await workers.until_idle()


async def test_answers_are_the_same_whenever_they_begin(model: DecoderModel, start_workers: StartWorkers) -> None:
    roomy = await start_workers(model)
    expected = await alone(roomy, 6, 20, FULL, temperature=1.0)
    tight = await start_workers(model, num_blocks=LAYERS * 30, max_running=6)
    async with tight.decode.reserve([[16 * 12] * LAYERS], 1):
        assert await answers(tight, asking(tight.request(PROMPT, 20, temperature=1.0), 6)) == expected
    await tight.until_idle()
