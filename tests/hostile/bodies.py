"""Bodies for the HTTP endpoints: sound ones, bent ones, and bytes that are no JSON at all."""

import copy
import json
import math
import random
from typing import Any

from common.settings import DEFAULT_MODEL

_ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**64,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    "",
    "x",
    "\u2028\ud83d",
    "\x00",
    [],
    [[]],
    [None],
    [-1],
    [2**40],
    ["a"] * 200,
    {},
    {"a": {"b": {}}},
    [[1, 2], [3]],
]
_FIELDS = (
    "model prompt messages max_tokens max_completion_tokens min_tokens temperature top_p top_k min_p seed stop "
    "stop_token_ids ignore_eos include_stop_str_in_output skip_special_tokens stream stream_options n best_of logprobs "
    "top_logprobs prompt_logprobs echo suffix logit_bias response_format structured_outputs guided_json guided_regex "
    "guided_choice guided_grammar tools tool_choice parallel_tool_calls functions user "
    "store metadata priority frequency_penalty presence_penalty repetition_penalty chat_template "
    "structkv unknown tokens add_special_tokens add_generation_prompt return_token_strs"
).split()
_BIASES: list[Any] = [{"5": 1}, {"5": -100.5}, {"-1": 1}, {"9" * 20: 1}, {"5": "1"}, {"\u0665": 1}, {"": math.nan}]
_DEEP: Any = {}
for _ in range(150):
    _DEEP = {"items": _DEEP, "type": "array"}
_SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "string"}}},
    {"not": {}},
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}, "$ref": "#/$defs/d0"},
    {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(6)]} for i in range(8)]},
    {"type": "integer", "multipleOf": 10**9 + 7},
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    {"enum": []},
    {"properties": {"properties": []}, "required": {"a": 1}},
    {"type": {"a": 1}, "items": "x", "anyOf": {}, "x-guidance": {"lenient": True}},
    _DEEP,
]
_GRAMMARS = [
    "start: start",
    "start: " + "(" * 5000,
    "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(6000)),
    "start: %json {}",
    "root ::= root root | root",
    "root ::= " + "[" * 3000,
    "\ud83d",
]


def _form(dice: random.Random) -> dict[str, Any]:
    """Return something that asks for an answer's form, or for calls of tools, mostly in an odd way."""
    schema, odd = dice.choice(_SCHEMAS), copy.deepcopy(dice.choice(_ODD))
    function = {"name": "f", "parameters": schema, "strict": dice.random() < 0.5}
    choice = dice.choice(["auto", "required", {"type": "function", "function": {"name": "f"}}, odd])
    return dice.choice(
        [
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            {"response_format": {"type": dice.choice(["json_object", "json_schema", "text", odd]), "json_schema": odd}},
            {"structured_outputs": {dice.choice(["json", "regex", "choice", "grammar", "json_object"]): odd}},
            {"structured_outputs": {"json": dice.choice([json.dumps(schema), '{"a":' * 3000, "[", schema])}},
            {"structured_outputs": {"grammar": dice.choice(_GRAMMARS)}},
            {
                "structured_outputs": {
                    "regex": dice.choice(["(" * 5000, "(?=a)", "a{1000}{1000}", "[^\\W\\w]", "\\p{L}"])
                }
            },
            {"tools": [{"type": "function", "function": function}], "tool_choice": choice},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": odd}}], "tool_choice": choice},
        ]
    )


_STRUCTKV = (
    "method variant kv_retention kv_tokens struct_retention window_tokens sink_tokens floor_tokens saliency "
    "ranked_by granularity pool_tokens block_tokens decay pivot pivot_layer codec return_stats unknown"
).split()


def sound(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """Return an endpoint and a body that it answers."""
    messages = [{"role": "user", "content": "Hello"}]
    if dice.random() < 0.1:
        return "/detokenize", {"model": DEFAULT_MODEL, "tokens": [5, 6, 7]}
    if dice.random() < 0.1:
        return "/tokenize", {"model": DEFAULT_MODEL} | dice.choice([{"prompt": "Once"}, {"messages": messages}])
    common: dict[str, Any] = {"model": DEFAULT_MODEL, "max_tokens": 4, "temperature": 0.5, "stream": False}
    common["n"] = dice.choice([1, 1, 2])
    if dice.random() < 0.5:
        prompt: Any = dice.choice(["Once", ["Once", "Twice"], [5, 6], [[5], [6]]])
        return "/v1/completions", common | {"prompt": prompt, "logprobs": dice.choice([None, 2])}
    return "/v1/chat/completions", common | {"messages": messages, "logprobs": dice.random() < 0.3}


def bent(dice: random.Random) -> tuple[str, bytes]:
    """Return an endpoint and the bytes of a body with something wrong in it, most of the time."""
    path, body = sound(dice)
    for _ in range(dice.randrange(1, 4)):
        if dice.random() < 0.3:
            body.setdefault("structkv", {})
            if isinstance(body["structkv"], dict):
                body["structkv"][dice.choice(_STRUCTKV)] = copy.deepcopy(dice.choice(_ODD))
        elif dice.random() < 0.2 and isinstance(body.get("messages"), list):
            body["messages"].append(
                {dice.choice(["role", "content", "name", "tool_calls", "x"]): copy.deepcopy(dice.choice(_ODD))}
            )
        elif dice.random() < 0.15:
            body |= _form(dice)
        elif dice.random() < 0.1:
            body["logit_bias"] = dice.choice(_BIASES)
        else:
            body[dice.choice(_FIELDS)] = copy.deepcopy(dice.choice(_ODD))
    data = json.dumps(body).encode()
    kind = dice.random()
    if kind < 0.1:
        data = data[: dice.randrange(len(data))]
    elif kind < 0.2:
        data = bytes(byte ^ (dice.random() < 0.02) * dice.randrange(256) for byte in data)
    elif kind < 0.23:
        data = b"[" * dice.randrange(1, 50_000)
    elif kind < 0.26:
        data = dice.randbytes(dice.randrange(400))
    return path, data
