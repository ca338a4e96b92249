"""Several prompts and several answers in one request."""

import asyncio
import itertools

import grpc
import pytest

from common.pb import decode_pb2
from services.gateway.text_model import TextModel
from tests.gateway.conftest import SKELETON, Gateway, Step, events, until
from tests.gateway.test_api import UNCACHED, error_of, frames

TEXTS = [" one two three", " four", " five six"]


def interleaved(*scripts: list[Step]) -> list[Step]:
    """Return the scripts' steps in turns; the skeleton comes with the first."""
    steps = [step for turn in itertools.zip_longest(*scripts) for step in turn if step is not None]
    for step in steps[1:]:
        assert isinstance(step, decode_pb2.GenerateEvent)
        step.ClearField("skeleton")
    return steps


def three_answers(model: TextModel) -> list[Step]:
    return interleaved(*(events(model.tokenizer.encode(text).ids, answer=place) for place, text in enumerate(TEXTS)))


def texts_of(chunks: list[dict]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


async def test_answers_of_one_prompt_share_a_call(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = three_answers(text_model)
    answer = (await gateway.complete(n=3)).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(TEXTS))
    assert len(gateway.decode.request.answers) == 3
    tokens = sum(len(text_model.tokenizer.encode(text).ids) for text in TEXTS)
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens, **UNCACHED}
    assert answer["usage"] == usage


async def test_answers_of_one_prompt_are_streamed_side_by_side(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = three_answers(text_model)
    chunks = frames(await gateway.complete(n=3, stream=True))
    assert texts_of(chunks) == dict(enumerate(TEXTS))
    assert [chunk["choices"][0]["index"] for chunk in chunks][:3] == [0, 1, 1], "an answer's end comes when it ends"
    ends = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(end["index"] for end in ends) == [0, 1, 2]


async def test_a_chat_may_have_several_answers(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = three_answers(text_model)
    choices = (await gateway.chat(n=3)).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == list(enumerate(TEXTS))
    chunks = frames(await gateway.chat(n=3, stream=True))
    openings = [chunk["choices"][0] for chunk in chunks[:3]]
    assert [(opening["index"], opening["delta"]["role"]) for opening in openings] == [
        (place, "assistant") for place in range(3)
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_one_answer_and_the_others_go_on(
    gateway: Gateway, text_model: TextModel, stream: bool
) -> None:
    gateway.decode.script = three_answers(text_model)
    response = await gateway.complete(n=3, stop=" t", stream=stream)
    chunks = frames(response) if stream else [response.json()]
    assert texts_of(chunks) == {0: " one", 1: " four", 2: " five six"}


async def test_the_call_ends_when_every_answer_has(gateway: Gateway, text_model: TextModel) -> None:
    running = [events(text_model.tokenizer.encode(" one two three").ids, 0, answer) for answer in range(2)]
    gateway.decode.script = [*interleaved(*running), 30.0]
    async with asyncio.timeout(5):
        choices = (await gateway.complete(n=2, stop=" two")).json()["choices"]
        await gateway.decode.cancelled.wait()
    assert [choice["text"] for choice in choices] == [" one", " one"]


async def test_a_prompt_whose_answers_have_ended_is_not_decoded_on(gateway: Gateway, text_model: TextModel) -> None:
    running = events(text_model.tokenizer.encode(" one two three").ids, 0)
    goes_on = asyncio.Event()
    scripts = {500: [*running, 30.0], 600: [*running[:1], goes_on, *events([601])]}
    gateway.decode.script_for = lambda request: scripts[request.prompt_token_ids[0]]
    async with asyncio.timeout(5):
        answering = asyncio.create_task(gateway.complete(prompt=[[500], [600]], stop=" two"))
        await gateway.decode.cancelled.wait()
        assert not answering.done()
        goes_on.set()
        assert len((await answering).json()["choices"]) == 2


def echoed(request: decode_pb2.GenerateRequest) -> list[Step]:
    """Answer with the prompt's first token; a prompt that begins with 13 fails."""
    first = request.prompt_token_ids[0]
    if first == 13:
        return [grpc.StatusCode.RESOURCE_EXHAUSTED]
    return interleaved(*(events([first + answer, first], answer=answer) for answer in range(len(request.answers))))


@pytest.fixture
def echoing(gateway: Gateway) -> Gateway:
    gateway.decode.script_for = echoed
    return gateway


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_has_its_choices(echoing: Gateway, text_model: TextModel, stream: bool) -> None:
    response = await echoing.complete(prompt=[[500], [600, 601]], n=2, stream=stream)
    decode = text_model.tokenizer.decode
    expected = [decode(ids) for ids in ([500, 500], [501, 500], [600, 600], [601, 600])]
    chunks = frames(response) if stream else [response.json()]
    assert texts_of(chunks) == dict(enumerate(expected))
    assert sorted(len(request.answers) for request in echoing.decode.requests) == [2, 2]
    assert len({request.request_id for request in echoing.decode.requests}) == 2


async def test_prompts_are_texts_or_token_ids(echoing: Gateway, text_model: TextModel) -> None:
    texts = (await echoing.complete(prompt=["Once", " upon"])).json()
    ids = (await echoing.complete(prompt=[text_model.tokenizer.encode(text).ids for text in ("Once", " upon")])).json()
    assert texts["choices"] == ids["choices"]
    assert texts["usage"]["prompt_tokens"] == 2
    assert texts["usage"]["completion_tokens"] == 4


async def test_echo_is_of_each_choices_own_prompt(echoing: Gateway) -> None:
    choices = (await echoing.complete(prompt=["Once", " upon"], n=2, echo=True)).json()["choices"]
    starts = ["Once", "Once", " upon", " upon"]
    assert all(choice["text"].startswith(start) for choice, start in zip(choices, starts, strict=True))


@pytest.mark.parametrize("stream", [False, True])
async def test_one_prompt_that_fails_fails_the_request(echoing: Gateway, stream: bool) -> None:
    error = error_of(await echoing.complete(prompt=[[500], [13], [600]], stream=stream), 429)
    assert error["code"] == "overloaded"


async def test_the_other_prompts_are_cancelled(gateway: Gateway) -> None:
    failing = {13: [0.2, grpc.StatusCode.RESOURCE_EXHAUSTED]}
    gateway.decode.script_for = lambda request: failing.get(request.prompt_token_ids[0], [30.0])
    async with asyncio.timeout(5):
        error_of(await gateway.complete(prompt=[[500], [13]]), 429)
        await gateway.decode.cancelled.wait()


async def test_a_failure_in_the_middle_of_one_ends_all(gateway: Gateway) -> None:
    first = decode_pb2.GenerateEvent(token_ids=[500], skeleton=SKELETON)
    failing = {13: [first, 0.2, grpc.StatusCode.INVALID_ARGUMENT]}
    gateway.decode.script_for = lambda request: failing.get(request.prompt_token_ids[0], [first, 30.0])
    async with asyncio.timeout(5):
        *_, last = frames(await gateway.complete(prompt=[[500], [13]], stream=True))
        await gateway.decode.cancelled.wait()
    assert last["error"]["type"] == "invalid_request_error"


async def test_usage_goes_on_with_each_choice(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = three_answers(text_model)
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = frames(await gateway.complete(n=3, stream=True, stream_options=options))
    of_first = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["choices"][0]["index"] == 0]
    assert of_first == sorted(of_first)
    assert of_first[0] == 1
    assert of_first[-1] == len(text_model.tokenizer.encode(TEXTS[0]).ids)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == sum(len(text_model.tokenizer.encode(text).ids) for text in TEXTS)


async def test_a_client_that_leaves_cancels_every_prompts_call(gateway: Gateway) -> None:
    gateway.decode.script = [30.0]
    asking = asyncio.create_task(gateway.complete(prompt=[[500], [600]]))

    async def both_run() -> bool:
        return len(gateway.decode.requests) == 2

    await until(both_run)
    asking.cancel()
    async with asyncio.timeout(5):
        await gateway.decode.cancelled.wait()
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize("event", [{"answer": 1}, {"finish_reason": 9}])
async def test_a_worker_that_makes_no_sense_is_an_error(gateway: Gateway, event: dict) -> None:
    gateway.decode.script = [decode_pb2.GenerateEvent(token_ids=[5], skeleton=SKELETON, **event)]
    assert error_of(await gateway.complete(), 500)["code"] == "internal_error"


async def test_many_prompts_are_sent_on_a_few_at_a_time(gateway: Gateway) -> None:
    """A request's prompts do not make a decode worker's running streams wait by all coming at once."""
    going, num_sent = asyncio.Event(), list[int]()
    first, *rest = events([5, 6])

    def script(_: decode_pb2.GenerateRequest) -> list[Step]:
        num_sent.append(len(gateway.decode.requests))
        return [going, first, 0.05, *rest]

    gateway.decode.script_for = script
    asking = asyncio.create_task(gateway.complete(prompt=[[500]] * 64, max_tokens=2))

    async def some_wait() -> bool:
        return len(num_sent) >= 8

    await until(some_wait)
    await asyncio.sleep(0.1)
    assert len(num_sent) == 8
    going.set()
    assert len((await asking).json()["choices"]) == 64
