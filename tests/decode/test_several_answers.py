"""Several answers of one prompt: one prefill, one skeleton, and each answer as if it had been asked for alone."""

import asyncio
import random
from collections.abc import Callable, Iterable

import grpc
import pytest

from common.errors import InvalidRequestError, from_rpc
from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from common.skeleton.selection import Selection
from tests.conftest import FULL, StartWorkers, Workers

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]
SKELETON = Selection(kv_retention=0.2, struct_retention=0.4, floor_tokens=32, pivot_layer=3)
EVERYTHING = {
    "temperature": 1.1,
    "top_p": 0.9,
    "seed": 2**64 - 2,  # answer 2's is 0
    "frequency_penalty": 0.7,
    "presence_penalty": -0.4,
    "repetition_penalty": 1.2,
    "logit_bias": {7: 4.0, 9: -100.0},
    "min_tokens": 20,
    "stop_token_ids": list(range(40, 60)),
}


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


def asking(request: decode_pb2.GenerateRequest, num_answers: int) -> decode_pb2.GenerateRequest:
    """Have a request ask for so many answers."""
    request.answers.extend(decode_pb2.AnswerSoFar() for _ in range(num_answers))
    return request


def by_answer(events: Iterable[decode_pb2.GenerateEvent]) -> dict[int, list[int]]:
    """Return each answer's tokens; nothing comes after an answer's end."""
    tokens: dict[int, list[int]] = {}
    ended = set()
    for event in events:
        assert event.answer not in ended
        tokens.setdefault(event.answer, []).extend(event.token_ids)
        if event.finish_reason:
            ended.add(event.answer)
    assert ended == tokens.keys()
    return tokens


async def answers(workers: Workers, request: decode_pb2.GenerateRequest) -> dict[int, list[int]]:
    return by_answer(await workers.generate(request))


async def alone(workers: Workers, num_answers: int, max_tokens: int, selection: Selection, **sampling: object):
    """Return the answers of single requests with the seeds that the answers of one request have."""
    seed = int(str(sampling.pop("seed", 0)))
    requests = [
        workers.request(PROMPT, max_tokens, selection, seed=(seed + number) % 2**64, **sampling)
        for number in range(num_answers)
    ]
    return {number: await workers.tokens(request) for number, request in enumerate(requests)}


@pytest.mark.parametrize("selection", [FULL, SKELETON], ids=["full", "skeleton"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_answers_are_those_of_single_requests_and_share_one_prefill(
    family: str,
    selection: Selection,
    tiny: Callable[[str], DecoderModel],
    start_workers: StartWorkers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = await start_workers(tiny(family))
    expected = await alone(workers, 4, 50, selection, **EVERYTHING)
    assert len({tuple(answer) for answer in expected.values()}) == 4
    prompts, stream = [], workers.prefill.stream
    monkeypatch.setattr(workers.prefill, "stream", lambda *args: prompts.append(args[0]) or stream(*args))
    events = await workers.generate(asking(workers.request(PROMPT, 50, selection, **EVERYTHING), 4))
    assert by_answer(events) == expected
    assert len(prompts) == 1
    assert [event.HasField("skeleton") for event in events] == [True] + [False] * (len(events) - 1)
    assert [event.answer for event in events[:8]] == [0, 1, 2, 3] * 2, "they go on side by side"
    await workers.until_idle()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_any_mixture_of_answers_so_far_goes_on(
    family: str, tiny: Callable[[str], DecoderModel], start_workers: StartWorkers
) -> None:
    workers = await start_workers(tiny(family))
    whole = await answers(workers, asking(workers.request(PROMPT, 60, SKELETON, **EVERYTHING), 4))
    assert any(len(answer) < 60 for answer in whole.values()), "one is ended by a stop token"
    dice = random.Random(4)
    for _ in range(6):
        request = workers.request(PROMPT, 60, SKELETON, **EVERYTHING)
        left = {}
        for number, answer in whole.items():
            delivered = dice.choice([0, 1, dice.randrange(len(answer)), len(answer)])
            request.answers.add(token_ids=answer[:delivered], finished=delivered == len(answer))
            if delivered < len(answer):
                left[number] = answer[delivered:]
        assert await answers(workers, request) == left
    await workers.until_idle()


async def test_nothing_is_asked_of_anyone_when_all_answers_are_finished(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    request = workers.request(PROMPT, 5)
    request.answers.add(token_ids=[5] * 5, finished=True)
    request.prefill_targets[:] = ["127.0.0.1:1"]
    assert await workers.generate(request) == []


async def test_neighbours_do_not_matter(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    kinds = [
        {},
        {"temperature": 1.2, "seed": 3},
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 1.0, "logit_bias": {30: 3.0}, "top_logprobs": 3},
        EVERYTHING,
    ]

    def requests() -> list[decode_pb2.GenerateRequest]:
        return [
            asking(workers.request(PROMPT[10 * n :], 30, SKELETON, **kind), 1 + n % 3) for n, kind in enumerate(kinds)
        ]

    expected = [await workers.generate(request) for request in requests()]
    together = await asyncio.gather(*(workers.generate(request) for request in requests()))
    for found, wanted in zip(together, expected, strict=True):
        assert by_answer(found) == by_answer(wanted)
    tokens = [by_answer(events)[0] for events in expected]
    assert len({tuple(answer) for answer in tokens}) == len(kinds)


class TestMemory:
    """Where it comes from, and that it is given back."""

    async def test_more_answers_than_the_batch_holds_are_refused_by_name(
        self, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        workers = await start_workers(model, max_running=3)
        with pytest.raises(grpc.aio.AioRpcError, match=r"4 answers .* max_running \(3\).*lower n") as refused:
            await workers.generate(asking(workers.request(PROMPT, 5), 4))
        assert isinstance(from_rpc(refused.value), InvalidRequestError)
        assert len(await answers(workers, asking(workers.request(PROMPT, 5), 3))) == 3
        await workers.until_idle()

    async def test_more_answers_than_the_memory_holds_are_refused_by_name(
        self, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        # 201 and 5 tokens are 13 blocks in each of six layers, every other answer is two more.
        workers = await start_workers(model, num_blocks=6 * (13 + 2 * 2))
        with pytest.raises(grpc.aio.AioRpcError, match=r"4 answers need .* 114 blocks .* has 102; lower n") as refused:
            await workers.generate(asking(workers.request(PROMPT, 5), 4))
        assert isinstance(from_rpc(refused.value), InvalidRequestError)
        assert len(await answers(workers, asking(workers.request(PROMPT, 5), 3))) == 3
        await workers.until_idle()

    async def test_requests_that_fill_the_memory_have_their_turns(
        self, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        workers = await start_workers(model, num_blocks=6 * (13 + 2 * 2))
        requests = [asking(workers.request(PROMPT, 5, temperature=1.0), 3) for _ in range(4)]
        first, *others = await asyncio.gather(*(answers(workers, request) for request in requests))
        assert others == [first] * 3
        await workers.until_idle()

    async def test_answers_are_right_when_memory_runs_out_midway(
        self, model: DecoderModel, start_workers: StartWorkers, caplog: pytest.LogCaptureFixture
    ) -> None:
        roomy = await start_workers(model)
        expected = await answers(roomy, asking(roomy.request(PROMPT, 400, temperature=1.0), 4))
        # One answer of 400 tokens behind 201 fills 38 blocks in each of six layers; all four begin with 48.
        tight = await start_workers(model, num_blocks=6 * 48)
        caplog.set_level("INFO", logger="services.decode.admission")
        requests = [asking(tight.request(PROMPT, 400, temperature=1.0), 4) for _ in range(2)]
        assert await asyncio.gather(*(answers(tight, request) for request in requests)) == [expected] * 2
        assert "sequence swapped out" in caplog.messages
        await tight.until_idle()
        taken_over = tight.request(PROMPT, 400, temperature=1.0)
        for answer in expected.values():
            taken_over.answers.add(token_ids=answer[:300])
        assert await answers(tight, taken_over) == {number: answer[300:] for number, answer in expected.items()}
        await tight.until_idle()

    async def test_an_answer_that_ends_frees_its_memory_while_others_go_on(
        self, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        workers = await start_workers(model)
        allocator = workers.decode_engine.pool.allocator
        request = workers.request(PROMPT, 800)
        request.answers.add(token_ids=[5] * 799)
        request.answers.add()
        call = workers.stub.Generate(request)
        async for event in call:
            if event.finish_reason:
                break
        assert event.answer == 0
        used = allocator.num_blocks - allocator.num_free
        assert 6 * 13 <= used < 6 * (13 + 50), "the other's, and not the 800 tokens' of the first"
        call.cancel()
        await workers.until_idle()

    @pytest.mark.parametrize("num_events", [0, 1, 7])
    async def test_cancelling_frees_all_of_them(
        self, num_events: int, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        workers = await start_workers(model)
        call = workers.stub.Generate(asking(workers.request(PROMPT, 800), 5))
        for _ in range(num_events):
            assert await call.read() != grpc.aio.EOF
        call.cancel()
        await workers.until_idle()
        assert len(await answers(workers, asking(workers.request(PROMPT, 3), 16))) == 16

    async def test_an_error_frees_all_of_them(
        self, model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workers = await start_workers(model)
        request = asking(workers.request(PROMPT, 5), 3)
        request.prefill_targets[:] = ["127.0.0.1:1"]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await workers.generate(request)
        assert failed.value.code() is grpc.StatusCode.ABORTED
        await workers.until_idle()
        step = workers.decode_engine.step

        def failing(batch):
            if any(sequence.answer.num_generated == 2 and sequence.answer.number == 1 for sequence in batch):
                raise RuntimeError("out of order")
            return step(batch)

        with monkeypatch.context() as patch:
            patch.setattr(workers.decode_engine, "step", failing)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await workers.generate(asking(workers.request(PROMPT, 5), 3))
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        await workers.until_idle()
        assert len(await answers(workers, asking(workers.request(PROMPT, 3), 3))) == 3
