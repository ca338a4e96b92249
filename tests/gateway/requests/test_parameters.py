"""What becomes of each parameter: what decode is asked for, and what it changes in the answer."""

import pytest

from common.skeleton.selection import Selection
from services.gateway.requests.schemas import ChatRequest
from services.gateway.requests.selection_options import StructKVOptions
from services.gateway.requests.unsupported import UNSUPPORTED
from services.gateway.text_model import TextModel
from tests.gateway.conftest import LENGTH, STOP, Gateway, events
from tests.gateway.test_api import error_of, frames


async def test_sampling_parameters_reach_decode(gateway: Gateway) -> None:
    body = {
        "n": 3,
        "best_of": 3,
        "min_tokens": 4,
        "frequency_penalty": 0.5,
        "presence_penalty": -2,
        "repetition_penalty": 1.25,
        "logit_bias": {"50": -100, "7": 1.5},
    }
    gateway.decode.script = [step for answer in range(3) for step in events([5], answer=answer)]
    assert (await gateway.complete(**body)).status_code == 200
    request = gateway.decode.request
    sampling = request.sampling
    assert len(request.answers) == 3
    assert sampling.min_tokens == 4
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0.5, -2, 1.25)
    assert dict(sampling.logit_bias) == {50: -100, 7: 1.5}
    assert not sampling.HasField("top_logprobs")


async def test_without_them_nothing_is_penalised(gateway: Gateway) -> None:
    await gateway.complete()
    sampling = gateway.decode.request.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0, 0, 1)
    assert not sampling.logit_bias
    assert sampling.min_tokens == 0


@pytest.mark.parametrize("top", [0, 5])
async def test_logprobs_of_a_completion_are_asked_for(gateway: Gateway, text_model: TextModel, top: int) -> None:
    gateway.decode.script = events(text_model.tokenizer.encode(" upon").ids, top_logprobs=top)
    await gateway.complete(logprobs=top)
    assert gateway.decode.request.sampling.HasField("top_logprobs")
    assert gateway.decode.request.sampling.top_logprobs == top


@pytest.mark.parametrize(
    ("body", "top"), [({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3), ({"top_logprobs": 0}, None)]
)
async def test_logprobs_of_a_chat_are_asked_for(gateway: Gateway, body: dict, top: int | None) -> None:
    gateway.decode.script = events([42], top_logprobs=top or 0)
    assert (await gateway.chat(**body)).status_code == 200
    sampling = gateway.decode.request.sampling
    assert (sampling.top_logprobs if sampling.HasField("top_logprobs") else None) == top


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
async def test_a_wrong_parameter_of_a_chat_is_named(gateway: Gateway, body: dict, param: str) -> None:
    assert error_of(await gateway.chat(**body), 400)["param"] == param
    assert not gateway.decode.requests


@pytest.mark.parametrize("body", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 1}])
async def test_prompt_logprobs_are_refused_with_the_reason(gateway: Gateway, body: dict) -> None:
    message = error_of(await gateway.complete(**body), 400)["message"]
    assert "every position of the prompt" in message
    assert "skeleton" in message


async def test_best_of_is_refused_with_the_reason(gateway: Gateway) -> None:
    assert "n and logprobs" in error_of(await gateway.complete(n=2, best_of=4), 400)["message"]


async def test_what_only_describes_the_request_changes_nothing(gateway: Gateway) -> None:
    described = {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "new": [{}]}
    plain, other = (await gateway.complete(seed=1)).json(), (await gateway.complete(seed=1, **described)).json()
    assert plain["choices"] == other["choices"]
    first, second = gateway.decode.requests
    first.request_id = second.request_id
    assert first == second


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Once", [13261]])
async def test_echo_puts_the_prompts_text_in_front(
    gateway: Gateway, text_model: TextModel, prompt: object, stream: bool
) -> None:
    response = await gateway.complete(prompt=prompt, echo=True, stream=stream)
    answers = frames(response) if stream else [response.json()]
    text = "".join(answer["choices"][0]["text"] for answer in answers)
    echoed = prompt if isinstance(prompt, str) else text_model.tokenizer.decode(prompt)
    assert text == f"{echoed} upon a time"


@pytest.mark.parametrize(("included", "text"), [(False, " upo"), (True, " upon a t")])
async def test_a_stop_string_is_part_of_the_text_if_asked_for(gateway: Gateway, included: bool, text: str) -> None:
    choice = (await gateway.complete(stop="n a t", include_stop_str_in_output=included)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", "n a t")


@pytest.mark.parametrize("included", [False, True])
async def test_a_stop_token_is_part_of_the_text_if_asked_for(
    gateway: Gateway, text_model: TextModel, included: bool
) -> None:
    ids = text_model.tokenizer.encode(" upon a time").ids
    gateway.decode.script = events(ids, STOP)
    body = {"stop_token_ids": [ids[-1]], "include_stop_str_in_output": included}
    choice = (await gateway.complete(**body)).json()["choices"][0]
    assert choice["text"] == (" upon a time" if included else " upon a")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[-1])


async def test_the_models_own_end_is_no_stop_reason(gateway: Gateway, text_model: TextModel) -> None:
    gateway.decode.script = events([*text_model.tokenizer.encode(" fine").ids, 2], STOP)
    choice = (await gateway.complete()).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)


@pytest.mark.parametrize(("min_tokens", "text"), [(0, " tick"), (2, " tick tock tick"), (4, " tick tock tick tock")])
async def test_a_stop_string_does_not_end_an_answer_before_min_tokens(
    gateway: Gateway, text_model: TextModel, min_tokens: int, text: str
) -> None:
    words = [text_model.tokenizer.encode(word).ids for word in (" this", " that")]
    assert all(len(word) == 1 for word in words)
    gateway.decode.script = events([word[0] for word in (words * 3)[:4]], LENGTH)
    choice = (await gateway.complete(stop=" that", min_tokens=min_tokens)).json()["choices"][0]
    assert choice["text"] == text.replace("tick", "this").replace("tock", "that")


@pytest.mark.parametrize(("skipped", "text"), [(True, " fine"), (False, "<|im_start|> fine")])
async def test_special_tokens_are_shown_if_asked_for(
    gateway: Gateway, text_model: TextModel, skipped: bool, text: str
) -> None:
    gateway.decode.script = events([1, *text_model.tokenizer.encode(" fine").ids])
    choice = (await gateway.complete(skip_special_tokens=skipped)).json()["choices"][0]
    assert choice["text"] == text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"temperature": "hot"}, "invalid_type"),
        ({"max_tokens": 5.5}, "invalid_type"),
        ({"stop": 5}, "invalid_type"),
        ({"temperature": 3}, "decimal_above_max_value"),
        ({"presence_penalty": -3}, "decimal_below_min_value"),
        ({"n": 0}, "integer_below_min_value"),
        ({"n": 1000}, "integer_above_max_value"),
        ({"stop": ["x"] * 17}, "array_above_max_length"),
        ({"stop": "x" * 257}, "string_above_max_length"),
        ({"prompt": None}, "missing_required_parameter"),
        ({"structkv": {"methods": "full"}}, "unknown_parameter"),
        ({"logit_bias": {"x": 1}}, "invalid_value"),
        ({"suffix": "end"}, "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "unsupported_parameter"),
    ],
)
async def test_what_is_wrong_has_openais_code(gateway: Gateway, body: dict, code: str) -> None:
    assert error_of(await gateway.complete(**body), 400)["code"] == code


STRUCTKV = {
    "method": "snapkv",
    "variant": "paper",
    "kv_retention": 0.25,
    "kv_tokens": 300,
    "struct_retention": 0.5,
    "window_tokens": 16,
    "sink_tokens": 2,
    "floor_tokens": 64,
    "saliency": "sum",
    "ranked_by": "saliency",
    "granularity": "head",
    "pool_tokens": 3,
    "block_tokens": 8,
    "decay": 0.5,
    "pivot": "online",
    "pivot_layer": 9,
    "codec": "raw",
}


@pytest.mark.parametrize("name", STRUCTKV)
async def test_each_field_of_structkv_reaches_decode(gateway: Gateway, name: str) -> None:
    assert {*STRUCTKV, "return_stats"} == set(StructKVOptions.model_fields)
    assert (await gateway.complete(structkv={name: STRUCTKV[name]})).status_code == 200
    chosen = Selection.from_pb(gateway.decode.request.selection)
    assert chosen == Selection.of({name: STRUCTKV[name]})
    assert chosen != Selection()


ASKS_FOR_SOMETHING: dict[str, object] = {
    "suffix": "end",
    "prompt_logprobs": 1,
    "use_beam_search": True,
    "length_penalty": 0.5,
    "bad_words": ["bad"],
    "allowed_token_ids": [5],
    "truncate_prompt_tokens": 100,
    "prompt_embeds": "AAAA",
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "documents": [{"text": "a"}],
    "add_generation_prompt": False,
    "continue_final_message": True,
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "guided_whitespace_pattern": "[ ]*",
    "modalities": ["audio"],
    "audio": {"voice": "a"},
}


@pytest.mark.parametrize("name", [name for name in UNSUPPORTED if name != "echo"])
async def test_what_is_not_served_is_refused(gateway: Gateway, name: str) -> None:
    asks = (gateway.complete,) if name in ChatRequest.model_fields else (gateway.complete, gateway.chat)
    for ask in asks:
        error = error_of(await ask(**{name: ASKS_FOR_SOMETHING[name]}), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert name in error["message"]
        for neutral in [None, *UNSUPPORTED[name].neutral]:
            assert (await ask(**{name: neutral})).status_code == 200
