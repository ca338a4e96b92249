"""A decode worker that fails costs a pause: the answer goes on where it was, on another one."""

import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import grpc
import pytest

from common.errors import DeadlineError, OverloadedError, StructKVError, UnavailableError
from common.pb import decode_pb2
from services.gateway.workers.decode_client import DecodeClient
from services.gateway.workers.routing import WorkerPool
from tests.gateway.conftest import ScriptedDecode, Step, events, grpc_worker

ANSWER = [5, 6, 7, 8, 9, 10]
DEAD = grpc.StatusCode.UNAVAILABLE


class Continuing(ScriptedDecode):
    """Answers with what follows the tokens that it is told of, and fails as its script says, once for each entry."""

    def __init__(self, *failures: tuple[int, grpc.StatusCode]) -> None:
        super().__init__()
        self.failures = list(failures)

    async def Generate(self, request, context):
        done = len(request.answers[0].token_ids)
        assert list(request.answers[0].token_ids) == ANSWER[:done]
        self.script = events(ANSWER)
        if self.failures:
            after, status = self.failures.pop(0)
            self.script.insert(done + after, status)
        await super().Generate(request, context)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., object]]:
    """Return a function that starts a client with scripted decode workers."""
    async with AsyncExitStack() as stack:

        async def start(*workers: ScriptedDecode, worker_wait_seconds: float = 5) -> DecodeClient:
            options = {"interval_seconds": 0.1, "timeout_seconds": 2.0}
            addresses = [await stack.enter_async_context(grpc_worker(worker)) for worker in workers]
            prefill_address = await stack.enter_async_context(grpc_worker())
            decode = await stack.enter_async_context(WorkerPool("decode", addresses, **options))
            prefill = await stack.enter_async_context(WorkerPool("prefill", [prefill_address], **options))
            return DecodeClient(decode, prefill, worker_wait_seconds=worker_wait_seconds)

        yield start


def request() -> decode_pb2.GenerateRequest:
    return decode_pb2.GenerateRequest(
        prompt_token_ids=[1] * 100, sampling=decode_pb2.Sampling(max_tokens=6), answers=[decode_pb2.AnswerSoFar()]
    )


async def answer(client: DecodeClient, seconds: float = 20) -> list[int]:
    call = await client.open(request(), time.monotonic() + seconds)
    try:
        token_ids: list[int] = []
        while (event := await call.read()) is not None:
            token_ids += event.token_ids
        return token_ids
    finally:
        call.close()


@pytest.mark.parametrize("status", [DEAD, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED])
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_the_answer_goes_on_on_the_other_worker(after: int, status: grpc.StatusCode, start) -> None:
    workers = Continuing((after, status)), Continuing()
    assert await answer(await start(*workers)) == ANSWER
    assert sum(len(worker.requests) for worker in workers) == 2


async def test_every_worker_may_fail_as_long_as_there_are_new_tokens(start) -> None:
    failures = [(1, DEAD)] * 3
    assert await answer(await start(Continuing(*failures[:2]), Continuing(*failures))) == ANSWER


async def test_the_only_worker_is_waited_for(start) -> None:
    assert await answer(await start(Continuing((2, DEAD), (0, DEAD)))) == ANSWER


async def test_a_request_that_fails_everywhere_stops(start) -> None:
    workers = [Continuing(*[(0, grpc.StatusCode.INTERNAL)] * 20) for _ in range(2)]
    with pytest.raises(StructKVError, match="as scripted"):
        await answer(await start(*workers))
    assert [len(worker.requests) for worker in workers] == [1, 1]


async def test_prefill_failing_for_good_is_an_answer_too(start) -> None:
    client = await start(Continuing(*[(0, grpc.StatusCode.ABORTED)] * 20))
    with pytest.raises(UnavailableError):
        await answer(client)


async def test_all_full_is_an_answer_at_once(start) -> None:
    full = [(0, grpc.StatusCode.RESOURCE_EXHAUSTED)] * 20
    started = time.monotonic()
    with pytest.raises(OverloadedError):
        await answer(await start(Continuing(*full), Continuing(*full)))
    assert time.monotonic() - started < 2


async def test_half_an_answer_waits_for_room(start) -> None:
    full = [(0, grpc.StatusCode.RESOURCE_EXHAUSTED)] * 3
    assert await answer(await start(Continuing((2, DEAD), *full), Continuing(*full))) == ANSWER


async def test_the_deadline_ends_the_wait(start) -> None:
    full = [(0, grpc.StatusCode.RESOURCE_EXHAUSTED)] * 100
    with pytest.raises(DeadlineError):
        await answer(await start(Continuing((2, DEAD), *full)), seconds=1.5)


async def test_the_callers_mistake_is_not_tried_again(start) -> None:
    worker = Continuing((0, grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(StructKVError, match="as scripted"):
        await answer(await start(worker, worker))
    assert len(worker.requests) == 1


async def test_a_failed_worker_gets_its_memory_back(start) -> None:
    failing = Continuing((1, DEAD))
    client = await start(failing, Continuing())
    await answer(client)
    assert all(worker.in_flight_tokens == 0 for worker in await client._decode.candidates())


SECOND = [15, 16, 17]


def two_answers(request: decode_pb2.GenerateRequest) -> list[Step]:
    """Go on with two answers in turns, from where the request says that they are."""
    scripts = [events(ANSWER, answer=0), events(SECOND, answer=1)]
    assert [list(answer.token_ids) for answer in request.answers] == [
        ids[: len(answer.token_ids)] for ids, answer in zip((ANSWER, SECOND), request.answers, strict=True)
    ]
    return [step for turn in itertools.zip_longest(*scripts) for step in turn if step is not None]


class TwoAnswers(ScriptedDecode):
    """Gives two answers to a request; the first call fails after so many events."""

    def __init__(self, *failures: int) -> None:
        super().__init__()
        self.failures = list(failures)
        self.script_for = self._script

    def _script(self, request: decode_pb2.GenerateRequest) -> list[Step]:
        steps = two_answers(request)
        if self.failures:
            delivered = sum(len(answer.token_ids) for answer in request.answers)
            steps.insert(delivered + self.failures.pop(0), DEAD)
        return steps


@pytest.mark.parametrize("after", [1, 2, 5, 7])
async def test_several_answers_go_on_where_each_was(after: int, start) -> None:
    workers = TwoAnswers(after), TwoAnswers()
    client = await start(*workers)
    both = request()
    both.answers.add()
    call = await client.open(both, time.monotonic() + 20)
    answers: dict[int, list[int]] = {0: [], 1: []}
    while (event := await call.read()) is not None:
        answers[event.answer] += event.token_ids
    call.close()
    assert answers == {0: ANSWER, 1: SECOND}
    (resumed,) = [asked for worker in workers for asked in worker.requests if asked.answers[0].token_ids]
    assert resumed.answers[1].finished == (after > 5), "what is finished is not asked for again"


async def test_an_answer_that_is_no_longer_wanted_is_not_asked_for_again(start) -> None:
    workers = TwoAnswers(4), TwoAnswers()
    client = await start(*workers)
    both = request()
    both.answers.add()
    call = await client.open(both, time.monotonic() + 20)
    first = await call.read()
    assert first is not None
    assert first.answer == 0
    call.finish(0)
    others: list[int] = []
    while (event := await call.read()) is not None:
        assert event.answer == 1
        others += event.token_ids
    call.close()
    assert others == SECOND
    resumed = [asked for worker in workers for asked in worker.requests if asked.answers[0].finished]
    assert [list(asked.answers[0].token_ids) for asked in resumed] == [ANSWER[:1]]
