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
    "stop_token_ids ignore_eos stream stream_options n best_of logprobs top_logprobs echo logit_bias "
    "response_format tools tool_choice user priority frequency_penalty structkv unknown"
).split()
_STRUCTKV = (
    "method variant kv_retention kv_tokens struct_retention window_tokens sink_tokens floor_tokens saliency "
    "ranked_by granularity pool_tokens block_tokens decay pivot pivot_layer codec return_stats unknown"
).split()


def sound(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """Return an endpoint and a body that it answers."""
    common: dict[str, Any] = {"model": DEFAULT_MODEL, "max_tokens": 4, "temperature": 0.5, "stream": False}
    if dice.random() < 0.5:
        return "/v1/completions", common | {"prompt": "Once"}
    return "/v1/chat/completions", common | {"messages": [{"role": "user", "content": "Hello"}]}


def bent(dice: random.Random) -> tuple[str, bytes]:
    """Return an endpoint and the bytes of a body with something wrong in it, most of the time."""
    path, body = sound(dice)
    for _ in range(dice.randrange(1, 4)):
        if dice.random() < 0.3:
            body.setdefault("structkv", {})
            if isinstance(body["structkv"], dict):
                body["structkv"][dice.choice(_STRUCTKV)] = copy.deepcopy(dice.choice(_ODD))
        elif dice.random() < 0.2 and isinstance(body.get("messages"), list):
            body["messages"].append({dice.choice(["role", "content", "name", "x"]): copy.deepcopy(dice.choice(_ODD))})
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
