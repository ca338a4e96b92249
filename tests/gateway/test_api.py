"""What clients send and get: OpenAI's shapes, parameters and errors."""

import asyncio
import json
import re
import time

import grpc
import httpx
import pytest

from common.errors import OverloadedError
from common.pb import decode_pb2
from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel
from tests.gateway.conftest import LENGTH, STOP, Gateway, StartGateway, events, free_port, until

STATS = {
    "method": "structkv",
    "pivot_layer": 12,
    "kept_tokens_per_layer": [40, 41, 42],
    "skeleton_bytes": 1000,
    "full_kv_bytes": 9000,
    "transport": "redis",
    "prefill_seconds": 1.5,
    "transfer_seconds": 0.125,
    "queue_seconds": 0.25,
}


def frames(response: httpx.Response) -> list[dict]:
    """Return a stream's objects; check that it is framed as server-sent events and ends with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *entries, done, rest = response.text.split("\n\n")
    data = [entry for entry in entries if not entry.startswith(":")]  # comments, where a token took long
    assert (done, rest) == ("data: [DONE]", "")
    assert all(entry.startswith("data: ") for entry in data)
    return [json.loads(entry.removeprefix("data: ")) for entry in data]


END = {"logprobs": None, "finish_reason": "length", "stop_reason": None}
UNCACHED = {"prompt_tokens_details": {"cached_tokens": 0}}


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def error_and_missing(response: httpx.Response) -> list[str]:
    error = response.json()["error"]
    assert response.status_code == 503
    assert error["type"] == "service_unavailable"
    return response.json()["missing"]


async def test_a_completion(gateway: Gateway) -> None:
    answer = (await gateway.complete()).json()
    assert re.fullmatch(r"cmpl-\w+", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": DEFAULT_MODEL,
        "choices": [{"index": 0, "text": " upon a time", **END}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, **UNCACHED},
    }


async def test_a_chat_completion(gateway: Gateway) -> None:
    answer = (await gateway.chat()).json()
    assert re.fullmatch(r"chatcmpl-\w+", answer["id"])
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": " upon a time", "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, **END}]
    assert answer["usage"]["prompt_tokens"] == len(gateway.decode.request.prompt_token_ids)


async def test_a_completion_stream(gateway: Gateway) -> None:
    chunks = frames(await gateway.complete(stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [" upon", " a", " time", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_chat_stream(gateway: Gateway) -> None:
    chunks = frames(await gateway.chat(stream=True))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": " upon"},
        {"content": " a"},
        {"content": " time"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_stream_with_usage(gateway: Gateway) -> None:
    *chunks, last = frames(await gateway.complete(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, **UNCACHED}


async def test_stats_of_a_plain_answer(gateway: Gateway) -> None:
    stats = (await gateway.complete(structkv={"return_stats": True})).json()["structkv"]
    assert 0 < stats.pop("ttft_seconds") < 10
    assert stats == STATS | {"prompt_tokens": 1}


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
async def test_stats_come_with_a_streams_last_chunk(gateway: Gateway, options: dict) -> None:
    *chunks, last = frames(await gateway.complete(stream=True, structkv={"return_stats": True}, **options))
    assert set(last["structkv"]) == {*STATS, "prompt_tokens", "ttft_seconds"}
    assert not any("structkv" in chunk for chunk in chunks)


async def test_a_prompt_left_whole_has_no_pivot(gateway: Gateway) -> None:
    token = events([42])[0]
    token.ClearField("skeleton")
    gateway.decode.script = [token]
    stats = (await gateway.complete(structkv={"return_stats": True, "method": "full"})).json()["structkv"]
    assert stats["pivot_layer"] is None
    assert stats["method"] == "full"


async def test_a_stop_token_is_counted_but_not_shown(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = events([*text_model.tokenizer.encode(" fine").ids, 2], STOP)
    answer = (await gateway.complete()).json()
    assert answer["choices"][0]["text"] == " fine"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_several_tokens_ends_the_answer(gateway: Gateway, stream: bool) -> None:
    gateway.decode.script[2].finish_reason = 0
    gateway.decode.script += [30.0, *events([42])]
    async with asyncio.timeout(5):
        response = await gateway.complete(stop=["nothing", "n a t"], stream=stream)
        await gateway.decode.cancelled.wait()
    choices = [chunk["choices"][0] for chunk in (frames(response) if stream else [response.json()])]
    assert "".join(choice["text"] for choice in choices) == " upo"
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_plain_and_stream_agree_on_a_cut_character(gateway: Gateway, text_model: TextModel, stream: bool) -> None:
    ids = text_model.tokenizer.encode("日本語 👩‍👩‍👧‍👦").ids[:-1]
    gateway.decode.script = events(ids, LENGTH)
    response = await gateway.complete(stream=stream)
    answers = frames(response) if stream else [response.json()]
    text = "".join(answer["choices"][0]["text"] for answer in answers)
    assert text == text_model.tokenizer.decode(ids)
    assert text.endswith("\N{REPLACEMENT CHARACTER}")


async def test_a_pause_in_the_middle_of_a_text_changes_nothing(gateway: Gateway) -> None:
    gateway.decode.script.insert(1, 0.2)
    assert (await gateway.complete()).json()["choices"][0]["text"] == " upon a time"


@pytest.mark.parametrize("prompt", ["Once", ["Once"], [13261], [[13261]]])
async def test_forms_of_a_prompt(gateway: Gateway, text_model: TextModel, prompt: object) -> None:
    expected = text_model.tokenizer.encode("Once").ids if "Once" in (prompt, prompt[0]) else [13261]
    assert (await gateway.complete(prompt=prompt)).status_code == 200
    assert list(gateway.decode.request.prompt_token_ids) == expected


async def test_text_parts_and_every_role_reach_the_template(gateway: Gateway, text_model: TextModel) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": None}]
    assert (await gateway.chat(messages=messages)).status_code == 200
    text = text_model.tokenizer.decode(list(gateway.decode.request.prompt_token_ids), skip_special_tokens=False)
    assert "<|im_start|>developer\nBe brief.<|im_end|>" in text
    assert "<|im_start|>user\none\ntwo<|im_end|>" in text


async def test_defaults_of_a_completion(gateway: Gateway) -> None:
    await gateway.complete(temperature=None, stop=None, structkv=None, seed=None, n=None, logprobs=None)
    request = gateway.decode.request
    sampling = request.sampling
    assert request.priority == 0
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    assert sampling.max_tokens == 16
    assert list(sampling.stop_token_ids) == [2]
    assert (request.selection.method, request.selection.window_tokens) == ("structkv", 32)
    assert (request.selection.kv_retention, request.selection.struct_retention) == (0.1, 0.2)
    assert request.prefill_targets == [gateway.prefill_address]


async def test_a_chat_may_fill_the_context(gateway: Gateway) -> None:
    await gateway.chat()
    request = gateway.decode.request
    assert request.sampling.max_tokens == 8192 - len(request.prompt_token_ids)


async def test_the_window_of_a_chat_reaches_over_the_templates_closing_tokens(gateway: Gateway) -> None:
    await gateway.chat()
    assert gateway.decode.request.selection.window_tokens == 32 + 6


async def test_a_window_that_the_client_gives_is_taken_as_it_is(gateway: Gateway) -> None:
    await gateway.chat(structkv={"window_tokens": 5})
    assert gateway.decode.request.selection.window_tokens == 5


async def test_a_request_chooses_its_method_and_parameters(gateway: Gateway) -> None:
    await gateway.complete(structkv={"method": "snapkv", "kv_tokens": 256, "granularity": "layer", "codec": "int4"})
    selection = gateway.decode.request.selection
    assert selection.codec == "int4"
    assert (selection.method, selection.kv_tokens, selection.granularity) == ("snapkv", 256, "layer")
    assert (selection.window_tokens, selection.pool_tokens) == (32, 7), "SnapKV's own"


async def test_parameters_reach_decode(gateway: Gateway) -> None:
    await gateway.complete(
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.25,
        stop_token_ids=[5, 6],
        ignore_eos=True,
        priority=3,
        structkv={"kv_retention": 0.4, "struct_retention": 1, "method": "full"},
        some_future_field={"a": 1},
    )
    request = gateway.decode.request
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0, 0.5, 0)
    assert sampling.min_p == 0.25
    assert list(sampling.stop_token_ids) == [5, 6]
    assert request.priority == 3
    assert (request.selection.kv_retention, request.selection.struct_retention) == (0.4, 1.0)
    assert (request.selection.method, request.selection.codec) == ("full", "int8")


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (5, 5), (-1, 2**64 - 1), (2**63, 2**63), (-(2**63), 2**63)])
async def test_seeds_are_mapped_to_64_bits(gateway: Gateway, seed: int, sent: int) -> None:
    await gateway.complete(seed=seed)
    assert gateway.decode.request.sampling.seed == sent


async def test_without_a_seed_each_request_gets_its_own(gateway: Gateway) -> None:
    await gateway.complete()
    await gateway.complete()
    first, second = (request.sampling.seed for request in gateway.decode.requests)
    assert first != second


async def test_the_newer_name_for_max_tokens_wins(gateway: Gateway) -> None:
    await gateway.chat(max_tokens=3, max_completion_tokens=4)
    assert gateway.decode.request.sampling.max_tokens == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [[1], [1.5]]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [[1], [49152]]}, "prompt"),
        ({"prompt": [1, 49152]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"priority": 2**31}, "priority"),
        ({"priority": -(2**31) - 1}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"priority": -1}, "priority"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [49152]}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 65, "prompt": ["a", "b"]}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": False}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"include_stop_str_in_output": "no"}, "include_stop_str_in_output"),
        ({"skip_special_tokens": 0}, "skip_special_tokens"),
        ({"user": 5}, "user"),
        ({"store": "yes"}, "store"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"prompt": ["a", "b"], "structkv": {"return_stats": True}}, "structkv.return_stats"),
        ({"structkv": {"kv_retentoin": 0.1}}, "structkv.kv_retentoin"),
        ({"structkv": {"kv_retention": 0}}, "structkv.kv_retention"),
        ({"structkv": {"kv_retention": "0.1"}}, "structkv.kv_retention"),
        ({"structkv": {"struct_retention": 1.01}}, "structkv.struct_retention"),
        ({"structkv": {"method": "magic"}}, "structkv.method"),
        ({"structkv": {"codec": "zip"}}, "structkv.codec"),
        ({"structkv": {"codec": 8}}, "structkv.codec"),
        ({"structkv": []}, "structkv"),
        ({"model": 7}, "model"),
    ],
)
async def test_a_wrong_parameter_is_named(gateway: Gateway, body: dict, param: str) -> None:
    error = error_of(await gateway.complete(**body), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert not gateway.decode.requests


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        ("hello", "messages"),
    ],
)
async def test_a_wrong_message_is_named(gateway: Gateway, messages: object, param: str) -> None:
    assert error_of(await gateway.chat(messages=messages), 400)["param"] == param


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1, "best_of": 1, "echo": False, "suffix": "", "use_beam_search": False},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "prompt_logprobs": None},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}},
    ],
)
async def test_parameters_that_ask_for_nothing_are_fine(gateway: Gateway, neutral: dict) -> None:
    assert (await gateway.complete(**neutral)).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000])
async def test_a_malformed_body(gateway: Gateway, body: bytes) -> None:
    error_of(await gateway.http.post("/v1/completions", content=body), 400)


async def test_not_a_number_is_no_number(gateway: Gateway) -> None:
    body = f'{{"model": "{DEFAULT_MODEL}", "prompt": "x", "temperature": NaN}}'
    assert error_of(await gateway.http.post("/v1/completions", content=body), 400)["param"] == "temperature"


async def test_the_prompt_is_not_quoted_in_an_error(gateway: Gateway) -> None:
    response = await gateway.complete(prompt=["secret words", 5])
    assert "secret" not in response.text


async def test_an_unknown_model(gateway: Gateway) -> None:
    error = error_of(await gateway.complete(model="gpt-9"), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"


async def test_an_unknown_route(gateway: Gateway) -> None:
    assert "/v1/nothing" in error_of(await gateway.http.get("/v1/nothing"), 404)["message"]


async def test_a_wrong_verb(gateway: Gateway) -> None:
    response = await gateway.http.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


async def test_an_answer_must_fit_behind_the_prompt(gateway: Gateway) -> None:
    prompt = [42] * 8190
    assert (await gateway.complete(prompt=prompt, max_tokens=2)).status_code == 200
    error = error_of(await gateway.complete(prompt=prompt, max_tokens=3), 400)
    assert error["code"] == "context_length_exceeded"
    # A default is no request: it shrinks to what fits.
    assert (await gateway.complete(prompt=prompt)).status_code == 200
    assert gateway.decode.requests[-1].sampling.max_tokens == 2
    assert error_of(await gateway.complete(prompt=[42] * 8192), 400)["code"] == "context_length_exceeded"


async def test_a_body_beyond_the_limit(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_body_bytes=1000)
    error_of(await gateway.complete(prompt="x" * 1000), 413)

    async def parts():
        for _ in range(100):
            yield b"x" * 100

    error_of(await gateway.http.post("/v1/completions", content=parts()), 413)


async def test_other_requests_go_on_while_a_long_prompt_is_tokenised(gateway: Gateway) -> None:
    long = asyncio.create_task(gateway.chat(messages=[{"role": "user", "content": "some words " * 100_000}]))
    longest, started = 0.0, time.monotonic()
    while not long.done():
        before = time.monotonic()
        assert (await gateway.http.get("/health")).status_code == 200
        longest = max(longest, time.monotonic() - before)
        await asyncio.sleep(0.001)
    assert error_of(await long, 400)["code"] == "context_length_exceeded"
    assert longest < (time.monotonic() - started) / 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "openai_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, None),
        (grpc.StatusCode.OUT_OF_RANGE, 400, "context_length_exceeded"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "overloaded"),
        (grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (grpc.StatusCode.DATA_LOSS, 500, "internal_error"),
        (grpc.StatusCode.INTERNAL, 500, "internal_error"),
        (grpc.StatusCode.CANCELLED, 503, "service_unavailable"),
    ],
)
async def test_a_workers_refusal_before_the_first_token(
    gateway: Gateway, code: grpc.StatusCode, status: int, openai_code: str | None, stream: bool
) -> None:
    gateway.decode.script = [code]
    response = await gateway.complete(stream=stream)
    assert error_of(response, status)["code"] == openai_code
    assert ("retry-after" in response.headers) == (status == 429)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_worker_says_when_to_ask_again(gateway: Gateway, stream: bool) -> None:
    gateway.decode.script = [OverloadedError("full", retry_after_seconds=17)]
    response = await gateway.complete(stream=stream)
    assert error_of(response, 429)["code"] == "overloaded"
    assert response.headers["retry-after"] == "17"


async def test_a_failure_within_a_plain_answer(gateway: Gateway) -> None:
    gateway.decode.script[2] = grpc.StatusCode.UNAVAILABLE
    error_of(await gateway.complete(), 503)


async def test_a_failure_within_a_stream_is_an_event(gateway: Gateway) -> None:
    gateway.decode.script[2] = grpc.StatusCode.UNAVAILABLE
    *chunks, last = frames(await gateway.complete(stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " upon a"
    assert last["error"]["code"] == "service_unavailable"


async def test_an_answer_without_an_end_is_an_error(gateway: Gateway) -> None:
    gateway.decode.script = gateway.decode.script[:1]
    error_of(await gateway.complete(), 500)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline_ends_a_request_that_waits(start_gateway: StartGateway, stream: bool) -> None:
    gateway = await start_gateway(request_timeout_seconds=0.5)
    gateway.decode.script = [30.0]
    async with asyncio.timeout(5):
        error_of(await gateway.complete(stream=stream), 504)
        await gateway.decode.cancelled.wait()
    assert gateway.decode.time_remaining is not None
    assert gateway.decode.time_remaining < 0.5


async def test_the_deadline_ends_a_stream_with_an_event(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(request_timeout_seconds=0.5)
    gateway.decode.script.insert(1, 30.0)
    async with asyncio.timeout(5):
        assert frames(await gateway.complete(stream=True))[-1]["error"]["code"] == "deadline_exceeded"


async def test_no_decode_worker(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(decode_workers=f"127.0.0.1:{free_port()}")
    assert "no decode worker" in error_of(await gateway.complete(), 503)["message"]


async def test_no_prefill_worker(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(prefill_workers=f"127.0.0.1:{free_port()}")
    assert "no prefill worker" in error_of(await gateway.complete(), 503)["message"]
    assert not gateway.decode.requests


async def test_readiness_names_what_is_missing(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(prefill_workers=f"127.0.0.1:{free_port()}")

    async def only_prefill_is_missing() -> bool:
        return error_and_missing(await gateway.http.get("/ready")) == ["prefill"]

    await until(only_prefill_is_missing)
    assert (await gateway.http.get("/health")).status_code == 200
    assert (await gateway.http.get("/ready?workers=false")).status_code == 200, "it takes requests, which wait"


async def test_readiness_with_all_workers(gateway: Gateway) -> None:
    async def ready() -> bool:
        return (await gateway.http.get("/ready")).status_code == 200

    await until(ready)


async def test_models(gateway: Gateway) -> None:
    listing = (await gateway.http.get("/v1/models")).json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (DEFAULT_MODEL, "model", 8192)
    assert (await gateway.http.get(f"/v1/models/{DEFAULT_MODEL}")).json() == model
    assert error_of(await gateway.http.get("/v1/models/a/b"), 404)["code"] == "model_not_found"


async def test_a_name_of_ones_own(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(served_model_name="house/model")
    error_of(await gateway.complete(), 404)
    assert (await gateway.complete(model="house/model")).json()["model"] == "house/model"


async def test_a_request_id_is_kept_and_passed_on(gateway: Gateway) -> None:
    body = {"model": DEFAULT_MODEL, "prompt": "Once"}
    response = await gateway.http.post("/v1/completions", json=body, headers={"X-Request-Id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"
    assert gateway.decode.request.request_id == "abc-123"


@pytest.mark.parametrize("sent", ["", "with space", "x" * 129])
async def test_an_unfit_request_id_is_replaced(gateway: Gateway, sent: str) -> None:
    response = await gateway.http.get("/nowhere", headers={"X-Request-Id": sent})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


async def test_an_unforeseen_error_tells_nothing_of_itself(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pb2, "GenerateRequest", None)
    response = await gateway.complete()
    assert error_of(response, 500)["message"] == "internal error; see the gateway's log"
    assert response.headers["x-request-id"]


async def test_no_text_is_logged(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="services")
    await gateway.complete(prompt="Once")
    gateway.decode.script[1] = grpc.StatusCode.INTERNAL
    await gateway.complete(prompt="Once", stream=True)
    assert any(record.message == "answer ended" for record in caplog.records)
    assert not any("Once" in str(record.__dict__) or "upon" in str(record.__dict__) for record in caplog.records)
