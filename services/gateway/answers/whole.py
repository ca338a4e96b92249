"""Writes an answer that is sent in one piece."""

import asyncio
import json

from services.gateway.answers.logprob_shapes import JsonObject


async def encoded(content: JsonObject) -> bytes:
    """Return an answer's JSON. Others go on between its choices, which echoes and log probabilities make large."""
    fields = [_json(name) + b":" + await _value(value) for name, value in content.items()]
    return b"{" + b",".join(fields) + b"}"


async def _value(value: object) -> bytes:
    if not isinstance(value, list):
        return _json(value)
    entries: list[bytes] = []
    for entry in value:
        entries.append(_json(entry))
        await asyncio.sleep(0)
    return b"[" + b",".join(entries) + b"]"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
