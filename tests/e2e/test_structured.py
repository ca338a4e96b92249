"""Answers in a form, and calls of tools, by the real model: too small to get either right by itself."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from openai.types.chat import ChatCompletion

from tests.e2e.conftest import MODEL, Up

THINGS = (
    "a lighthouse keeper, a baker in Lyon, a stray cat, the moon, a steam engine, an olive tree, a chess player, "
    "a violin, a volcano, a bee, a library, an old map, a pirate ship, a glass of water, a mountain village, a robot, "
    "a weather station, a dragon, a train ticket, a kitchen knife, a polar bear, a birthday cake, a football match, "
    "a microscope, a desert fox, a queen, a jazz band, a bridge in Porto, a wind turbine, a snail, a doctor, a castle, "
    "a spaceship, a coffee machine, a teacher in Nairobi, a storm, a river boat, a computer mouse, a garden gnome, "
    "a new planet, a bus driver, a pearl, a haunted house, a potato, a marathon runner, a telescope, a wolf, "
    "a painter, a bookshop, a honey jar"
).split(", ")

CARD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "is_alive": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "is_alive", "tags"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "bounded": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 1, "maxLength": 30},
            "rating": {"type": "number", "minimum": 0, "maximum": 5},
            "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
            "colours": {
                "type": "array",
                "items": {"enum": ["red", "green", "blue", "grey"]},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["title", "rating", "year", "colours"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "owner": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 20},
                    "email": {"type": "string", "format": "email"},
                },
                "required": ["name"],
            },
            "address": {
                "type": "object",
                "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                "required": ["street", "zip"],
            },
        },
        "required": ["owner", "address"],
    },
    "references": {
        "$defs": {
            "part": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
                },
                "required": ["label"],
            }
        },
        "$ref": "#/$defs/part",
    },
    "optional": {
        "type": "object",
        "properties": {
            "kind": {"const": "thing"},
            "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "note": {"type": "string"},
        },
        "required": ["kind", "id"],
    },
    "list": {"type": "array", "items": CARD, "minItems": 1, "maxItems": 2},
    "free": {"type": "object"},
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
        },
        "strict": True,
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def ask(up: Up, number: int, schema: dict[str, Any], max_tokens: int = 120) -> ChatCompletion:
    return up.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Describe {THINGS[number]} as a JSON object."}],
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}},
        temperature=(0, 0.7, 1.0)[number % 3],
        seed=number,
        max_tokens=max_tokens,
    )


def check(answer: ChatCompletion, schema: dict[str, Any]) -> None:
    (choice,) = answer.choices
    jsonschema.validate(json.loads(choice.message.content or ""), schema, jsonschema.Draft202012Validator)
    assert choice.finish_reason in {"stop", "length"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rotated", [False, True], ids=["one-schema", "all-schemas"])
def test_json_schema_answers_validate_on_fifty_prompts(rotated: bool, up: Up) -> None:
    assert len(THINGS) == 50
    schemas = [list(SCHEMAS.values())[number % len(SCHEMAS)] if rotated else CARD for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(up, number, schemas[number]), range(50)))
    for answer, schema in zip(answers, schemas, strict=True):
        check(answer, schema)


def test_an_answer_validates_although_max_tokens_are_few(up: Up) -> None:
    answer = ask(up, 0, CARD, max_tokens=32)
    check(answer, CARD)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 32


def test_several_answers_follow_the_schema(up: Up) -> None:
    answer = up.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Invent a person, as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "card", "schema": CARD}},
        n=3,
        temperature=1.0,
        seed=3,
        max_tokens=80,
    )
    texts = [choice.message.content or "" for choice in answer.choices]
    assert len(set(texts)) == 3
    for text in texts:
        jsonschema.validate(json.loads(text), CARD)


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        ({"choice": ["yes", "no", "maybe not"]}, "yes|no|maybe not"),
        ({"grammar": 'root ::= "The " ("cat" | "dog") " sleeps."'}, r"The (cat|dog) sleeps\."),
    ],
)
def test_completions_in_a_form(wanted: dict[str, Any], pattern: str, up: Up) -> None:
    answer = up.client.completions.create(
        model=MODEL,
        prompt="So I said:",
        max_tokens=30,
        temperature=1.0,
        seed=5,
        extra_body={"structured_outputs": wanted},
    )
    assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def chat_with_tools(up: Up, **options: Any) -> Any:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    return up.client.chat.completions.create(
        **{"model": MODEL, "messages": messages, "tools": [WEATHER, TIME], "max_tokens": 100, "seed": 1} | options
    )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_follows_its_schema_and_streams_alike(choice: Any, up: Up) -> None:
    plain = chat_with_tools(up, tool_choice=choice, parallel_tool_calls=False).choices[0]
    (call,) = plain.message.tool_calls
    assert plain.finish_reason == "tool_calls"
    assert plain.message.content is None
    assert call.id.startswith("call_")
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
    jsonschema.validate(json.loads(call.function.arguments), parameters[call.function.name])

    chunks = list(chat_with_tools(up, tool_choice=choice, parallel_tool_calls=False, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert deltas[0].function.name == call.function.name
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert len(deltas) > 2, "arguments come in pieces"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_conversation_goes_on_behind_a_call(up: Up) -> None:
    call = chat_with_tools(up, tool_choice="required", parallel_tool_calls=False).choices[0].message
    messages = [
        {"role": "user", "content": "What is the weather in Paris?"},
        call.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Sunny, 21 degrees"},
    ]
    answer = chat_with_tools(up, messages=messages, tool_choice="none").choices[0]
    assert answer.message.content
    assert answer.message.tool_calls is None
