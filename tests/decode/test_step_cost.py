"""Answers that a request has beyond its first one lengthen the steps of other requests only so far."""

import asyncio
from collections.abc import Callable
from itertools import dropwhile

import pytest

from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from services.decode.metrics import DecodeMetrics
from services.decode.step_cost import StepCost
from tests.conftest import StartWorkers, Workers

PROMPT = list(range(3, 40))
DEAR = StepCost(base=3.0, each=1.0)
"""One first answer's step takes 4, and with two further ones 6; two first answers' takes 5, and with two more 7."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the steps that are taken."""
    sizes: list[int] = []
    monkeypatch.setattr(DecodeMetrics, "stepped", lambda _self, _seconds, size: sizes.append(size))
    return sizes


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


def asking(workers: Workers, num_answers: int, max_tokens: int) -> decode_pb2.GenerateRequest:
    request = workers.request(PROMPT, max_tokens, temperature=1.0, seed=5)
    request.answers.extend(decode_pb2.AnswerSoFar() for _ in range(num_answers))
    return request


@pytest.mark.parametrize(("first", "most"), [(1, 3), (2, 4), (10, 16), (40, 61), (43, 64)])
def test_a_step_takes_at_most_half_as_long_again(first: int, most: int) -> None:
    assert DEAR.most_sequences(first, 64) == most


def test_where_a_sequence_costs_nothing_there_is_no_limit() -> None:
    assert StepCost(base=0.01, each=0.0).most_sequences(1, 500) == 500


def test_the_cost_is_what_the_quickest_of_several_tries_took() -> None:
    tries = {1: iter([0.9, 0.5, 0.7]), 16: iter([9.0, 2.5, 2.0, 2.2])}  # of 16 the first is for warming up
    cost = StepCost.measure(lambda number: next(tries[number]))
    assert cost.each == pytest.approx(0.1)
    assert cost.base == pytest.approx(0.4)


def test_further_answers_always_go_on() -> None:
    assert StepCost(base=0.0, each=1.0).most_sequences(1, 64) == 2


async def test_an_engine_can_be_measured(model: DecoderModel, start_workers: StartWorkers) -> None:
    cost = StepCost.measure((await start_workers(model)).decode_engine.seconds)
    assert cost.base + cost.each > 0
    assert cost.each >= 0


async def test_alone_all_answers_step_together(
    model: DecoderModel, start_workers: StartWorkers, steps: list[int]
) -> None:
    workers = await start_workers(model, step_cost=DEAR)
    await workers.generate(asking(workers, 8, 10))
    assert steps == [8] * 10


async def test_beside_others_further_answers_take_turns(
    model: DecoderModel, start_workers: StartWorkers, steps: list[int]
) -> None:
    workers = await start_workers(model, step_cost=DEAR)
    many, events = asking(workers, 8, 40), []

    async def read() -> None:
        async for event in workers.stub.Generate(many):
            events.append(event)  # noqa: PERF401  others look at what there is so far

    reading = asyncio.create_task(read())
    while not events:
        await asyncio.sleep(0)
    begun = len(steps)
    await workers.tokens(workers.request(PROMPT, 24))
    together = [*dropwhile(lambda size: size != 4, steps[begun:])][:20]  # once the other's skeleton is there
    taken = [sum(len(event.token_ids) for event in events if event.answer == number) for number in range(8)]
    await reading
    assert together == [4] * 20
    assert max(taken[1:]) - min(taken[1:]) <= 1, "equal shares, but for one's turn"
    assert taken[0] > max(taken[1:]) + 2
    assert sum(len(event.token_ids) for event in events) == 8 * 40, "and all come to their ends"


async def test_requests_have_equal_shares_of_what_further_answers_get(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model, step_cost=DEAR)
    ended: list[str] = []

    async def ask(name: str, num_answers: int) -> None:
        await workers.generate(asking(workers, num_answers, 24))
        ended.append(name)

    await asyncio.gather(ask("many", 12), ask("two", 2))
    assert ended == ["two", "many"]
