"""Tools over the API: what reaches template and decode, and how calls come back, plain and streamed."""

import json
from dataclasses import replace
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from common.pb import decode_pb2
from services.gateway.answers.detokenizer import special_token_ids
from services.gateway.chat_template import ChatTemplate
from services.gateway.text_model import TextModel
from services.gateway.tools.formats import HERMES
from tests.gateway.answers.test_agreement import GRAMMAR
from tests.gateway.conftest import STOP, Gateway, StartGateway, events
from tests.gateway.requests.test_structured import follows
from tests.gateway.test_api import error_of, frames

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}  # type: ignore[operator]
NAMED = {"type": "function", "function": {"name": "now"}}
QUESTION = {"role": "user", "content": "Weather in Paris?"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def says(gateway: Gateway, model: TextModel, text: str, finish: int = GRAMMAR) -> None:
    """Have the worker answer with a text."""
    gateway.decode.script = events(model.tokenizer.encode(text).ids, finish)


async def chat(gateway: Gateway, **body: Any) -> dict[str, Any]:
    response = await gateway.chat(**({"messages": [QUESTION], "tools": [WEATHER, NOW]} | body))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


async def streamed(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    response = await gateway.chat(**({"messages": [QUESTION], "tools": [WEATHER, NOW], "stream": True} | body))
    return [chunk["choices"][0] for chunk in frames(response)]


def prompt_of(gateway: Gateway, model: TextModel) -> str:
    return model.decode(gateway.decode.requests[-1].prompt_token_ids, skip_special_tokens=False)


async def test_calls_are_taken_out_of_the_text(gateway: Gateway, text_model: TextModel) -> None:
    says(gateway, text_model, f"Let me see.\n{CALL}\n{NOW_CALL}")
    choice = await chat(gateway)
    message = choice["message"]
    assert message["content"] == "Let me see."
    first, second = message["tool_calls"]
    assert first["type"] == second["type"] == "function"
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert second["function"] == {"name": "now", "arguments": "{}"}
    assert first["id"] != second["id"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", [CALL, f"Well, {CALL}\n{NOW_CALL}", "Nothing to call.", "A <tool"])
async def test_streams_say_the_same(gateway: Gateway, text_model: TextModel, text: str) -> None:
    says(gateway, text_model, text)
    plain = await chat(gateway)
    deltas = await streamed(gateway)
    assert deltas[0]["delta"]["role"] == "assistant"
    content = "".join(choice["delta"].get("content") or "" for choice in deltas)
    assert content == (plain["message"]["content"] or "")
    calls: dict[int, dict[str, Any]] = {}
    for piece in [piece for choice in deltas for piece in choice["delta"].get("tool_calls", [])]:
        if piece["index"] in calls:
            assert set(piece) == {"index", "function"}
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
        else:
            assert piece["id"].startswith("call_")
            calls[piece["index"]] = piece["function"]
    assert list(calls.values()) == [call["function"] for call in plain["message"].get("tool_calls", [])]
    assert deltas[-1]["finish_reason"] == plain["finish_reason"] == ("tool_calls" if calls else "stop")


async def test_a_call_that_max_tokens_cut_says_so(gateway: Gateway, text_model: TextModel) -> None:
    says(gateway, text_model, CALL[:-30], decode_pb2.FINISH_REASON_LENGTH)
    choice = await chat(gateway)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize("body", [{"tool_choice": "none"}, {"tools": []}])
async def test_without_tools_to_call_text_is_text(gateway: Gateway, text_model: TextModel, body: dict) -> None:
    says(gateway, text_model, CALL)
    choice = await chat(gateway, **body)
    assert choice["message"] == {"role": "assistant", "content": CALL, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert "get_weather" not in prompt_of(gateway, text_model)


async def test_without_parallel_calls_there_is_one(gateway: Gateway, text_model: TextModel) -> None:
    says(gateway, text_model, f"{CALL}\n{NOW_CALL}")
    assert len((await chat(gateway, parallel_tool_calls=False))["message"]["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("body", "fit", "unfit"),
    [
        ({"tool_choice": "required"}, [CALL, NOW_CALL, f"{CALL}\n{NOW_CALL}"], ["Paris", f"So {CALL}", CALL[:-20]]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [CALL], [f"{CALL}\n{NOW_CALL}"]),
        ({"tool_choice": NAMED}, [NOW_CALL], [CALL, f"{NOW_CALL}\n{NOW_CALL}"]),
        (
            {"tools": [STRICT, NOW]},
            ["Text {", "", CALL, f"So {CALL}", NOW_CALL.replace("{}}", '{"any": 1}}')],
            [CALL.replace("city", "town"), CALL.replace("get_weather", "other")],
        ),
        (
            {"response_format": {"type": "json_object"}},
            ['{"a": 1}', CALL],
            ["Text", f'{{"a": 1}}{CALL}'],
        ),
    ],
)
async def test_what_must_be_called_is_a_grammar(
    gateway: Gateway,
    grammar_tokenizer: LLTokenizer,
    body: dict,
    fit: list[str],
    unfit: list[str],
) -> None:
    await chat(gateway, **body)
    grammar = gateway.decode.request.sampling.grammar
    assert [text for text in fit if not follows(text, grammar, grammar_tokenizer)] == []
    assert [text for text in unfit if follows(text, grammar, grammar_tokenizer)] == []


@pytest.mark.parametrize("body", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
async def test_what_may_be_called_is_not(gateway: Gateway, body: dict) -> None:
    await chat(gateway, **body)
    assert gateway.decode.request.sampling.grammar == ""


async def test_a_template_that_knows_no_tools_gets_them_in_words(gateway: Gateway, text_model: TextModel) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    conversation = [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"},
        {"role": "tool", "tool_call_id": "call_1", "content": "Warm"},
    ]
    await chat(gateway, messages=conversation)
    prompt = prompt_of(gateway, text_model)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '{"name": "get_weather", "description": "Weather.", "parameters": {"type": "object"' in prompt
    assert prompt.count(CALL) == 2
    responses = "<tool_response>\nSunny\n</tool_response>\n<tool_response>\nWarm\n</tool_response>"
    assert f"<|im_start|>user\n{responses}<|im_end|>" in prompt


TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments.city }} "
    "{{ call.id }}{% endfor %}{{ message.tool_call_id }}{% endfor %}"
)


async def test_a_template_that_knows_tools_gets_them_as_they_are(
    start_gateway: StartGateway, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(text_model, chat_template=ChatTemplate(TEMPLATE, {}))
    monkeypatch.setattr("services.gateway.server.load_text_model", lambda _: model)
    gateway = await start_gateway()
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    answered = {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"}
    await chat(gateway, messages=[QUESTION, {"role": "assistant", "tool_calls": [call]}, answered], tools=[WEATHER])
    assert prompt_of(gateway, model) == (
        f"{json.dumps(WEATHER)}[user]Weather in Paris?[assistant]<tool_call>get_weather Paris call_1[tool]Sunnycall_1"
    )


SINGLE_CALLS = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if 'tool_calls' in message and message.tool_calls | length != 1 %}{{ raise_exception('one call') }}"
    "{% elif message.name is defined %}{{ message.name }}{% endif %}"
    "{% if message.tool_calls is defined and message.tool_calls is not none %}CALLS{% else %}{{ message.content }}"
    "{% endif %}{% endfor %}"
)


async def test_a_message_has_only_the_keys_that_its_client_gave(
    start_gateway: StartGateway, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(text_model, chat_template=ChatTemplate(SINGLE_CALLS, {}))
    monkeypatch.setattr("services.gateway.server.load_text_model", lambda _: model)
    gateway = await start_gateway()
    await chat(gateway, messages=[QUESTION, {"role": "assistant", "content": "yo"}], tools=[])
    assert prompt_of(gateway, model) == "[user]Weather in Paris?[assistant]yo"


async def test_the_form_can_be_set(start_gateway: StartGateway, text_model: TextModel) -> None:
    gateway = await start_gateway(tool_call_parser="mistral")
    says(gateway, text_model, '[TOOL_CALLS] [{"name": "now", "arguments": {}}]', STOP)
    gateway.decode.script[-1].token_ids.append(2)  # type: ignore[union-attr]
    assert (await chat(gateway))["message"]["tool_calls"][0]["function"]["name"] == "now"


async def test_markers_that_are_special_tokens_are_found_and_forced(
    start_gateway: StartGateway, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_str(text_model.tokenizer.to_str())
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    marker = tokenizer.token_to_id("[TOOL_CALLS]")
    model = replace(text_model, tokenizer=tokenizer, special_token_ids=special_token_ids(tokenizer))
    monkeypatch.setattr("services.gateway.server.load_text_model", lambda _: model)
    gateway = await start_gateway(tool_call_parser="mistral")
    says(gateway, model, '[TOOL_CALLS] [{"name": "now", "arguments": {}}]')
    assert gateway.decode.script[0].token_ids == [marker]  # type: ignore[union-attr]
    message = (await chat(gateway, tool_choice="required"))["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["name"]) == (None, "now")
    assert f"<[{marker}]>" in gateway.decode.request.sampling.grammar


async def test_a_call_whose_object_does_not_end_counts(gateway: Gateway, text_model: TextModel) -> None:
    says(gateway, text_model, '<tool_call>{"name": "now", "arguments": {}')
    assert (await chat(gateway))["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"functions": [{"name": "now"}]}, "functions"),
        ({"function_call": {"name": "now"}}, "function_call"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        (
            {"messages": [QUESTION | {"tool_calls": [{"id": "1", "function": {"name": "a", "arguments": ""}}]}]},
            "messages.0.tool_calls",
        ),
    ],
)
async def test_wrong_tools_are_named(gateway: Gateway, body: dict, param: str) -> None:
    response = await gateway.chat(**({"messages": [QUESTION], "tools": [WEATHER, NOW]} | body))
    assert error_of(response, 400)["param"].startswith(param)
    assert not gateway.decode.requests


async def test_half_a_surrogate_pair_comes_back_as_it_was_written(gateway: Gateway, text_model: TextModel) -> None:
    says(gateway, text_model, '<tool_call>{"arguments": {"x": "\\ud800"}, "name": "now"}</tool_call>')
    choice = await chat(gateway)
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"x": "\ud800"}


@pytest.mark.parametrize("arguments", ["[1]", '{"x": "\\ud800"}', "{"])
async def test_arguments_that_are_no_object_are_refused(gateway: Gateway, arguments: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    error = error_of(await gateway.chat(messages=[QUESTION, {"role": "assistant", "tool_calls": [call]}]), 400)
    assert error["param"] == "messages.1.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("body", "status"),
    [({"tool_choice": "required"}, 400), ({}, 200)],
    ids=["forced", "free"],
)
async def test_parameters_that_no_grammar_has_are_refused_where_calls_are_forced(
    gateway: Gateway, body: dict, status: int
) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}
    response = await gateway.chat(messages=[QUESTION], tools=[NOW, odd], **body)
    assert response.status_code == status
    if status == 400:
        error = error_of(response, 400)
        assert error["param"] == "tools.1.function.parameters"
        assert 'Unimplemented keys: ["not"]' in error["message"]


async def test_a_form_and_calls_without_a_marker_exclude_each_other(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(tool_call_parser="llama3_json")
    response = await gateway.chat(messages=[QUESTION], tools=[NOW], response_format={"type": "json_object"})
    assert error_of(response, 400)["param"] == "response_format"


def test_the_default_models_template_knows_no_tools(text_model: TextModel) -> None:
    assert not text_model.template_knows_tools
    assert text_model.tool_format is HERMES
