"""Bodies that are large, or dear to read: nearly all of what the gateway takes."""

import gzip
import json
import random
from collections.abc import Callable, Mapping

from benchmarks.attack.wire import Attack, Target, repeated

_BYTES = 16_000_000
"""Just below `max_body_bytes`."""

Body = Callable[[Target], bytes]
"""Makes the request that carries it."""


def _words(num_bytes: int) -> str:
    words = "The river turns here and the road follows it over the hill. "
    return (words * (num_bytes // len(words) + 1))[:num_bytes]


def _repeated(item: str, num_bytes: int = _BYTES) -> str:
    """Return a JSON list of as many of the same item as there is room for."""
    return "[" + ",".join([item] * (num_bytes // (len(item) + 1) - 1)) + "]"


def _with(path: str, field: str, value: str, **fields: object) -> Body:
    """Return the body with a field whose JSON is given as text: to make it as objects takes gigabytes."""

    def make(target: Target) -> bytes:
        others = json.dumps({"model": target.model, **fields})[:-1]
        return target.post(path, f'{others}, "{field}": {value}}}'.encode())

    return make


def _numbered(num_entries: int, value: str) -> str:
    return "{" + ",".join(f'"{number}":{value}' for number in range(num_entries)) + "}"


_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_MESSAGES = [{"role": "user", "content": "Hello"}]


def _said(content: Callable[[], str]) -> Body:
    return lambda target: target.chat(messages=[{"role": "user", "content": content()}])


def _called(target: Target) -> bytes:
    """A conversation with a call whose arguments are themselves large JSON."""
    function = {"name": "f", "arguments": json.dumps({"a": [[]] * (_BYTES // 8)})}
    call = {"id": "1", "type": "function", "function": function}
    return target.chat(messages=[*_MESSAGES, {"role": "assistant", "tool_calls": [call]}])


def _schema(target: Target) -> bytes:
    properties = {f"p{number}": {"type": "string"} for number in range(400_000)}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": properties}}}
    return target.chat(response_format=form)


def _packed(target: Target) -> bytes:
    """A body of a thousandth of its size."""
    content = json.dumps({"model": target.model, "messages": [{"role": "user", "content": " " * _BYTES}]}).encode()
    return target.post(_CHAT, gzip.compress(content), "Content-Encoding: gzip")


def _chunks(target: Target) -> bytes:
    """A body that comes in chunks of one byte."""
    head = target.head(_CHAT, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return head + b"1\r\n \r\n" * 2_000_000


BODIES: Mapping[str, Body] = {
    "chat-text": _said(lambda: _words(_BYTES)),
    "completion-text": lambda target: target.completion(prompt=_words(_BYTES)),
    "tokenize": lambda target: target.post("/tokenize", {"prompt": _words(_BYTES)}),
    "tokenize-with-strings": lambda target: target.post(
        "/tokenize", {"prompt": _words(1_000_000), "return_token_strs": True}
    ),
    "detokenize": _with("/detokenize", "tokens", _repeated("17", _BYTES)),
    "detokenize-allowed": _with("/detokenize", "tokens", _repeated("17", 3 * 262_000)),
    "metadata-of-numbers": _with(_CHAT, "metadata", _numbered(1_400_000, "0"), messages=_MESSAGES),
    "unknown-nested-lists": _with(_COMPLETION, "unknown", _repeated("[[]]"), prompt="a"),
    "deep-lists": _with(_COMPLETION, "unknown", "[" * 8_000_000 + "]" * 7_999_000, prompt="a"),
    "one-word": _said(lambda: "a" * 8_000_000),
    "a-million-messages": _with(_CHAT, "messages", _repeated('{"role":"a"}')),
    "text-parts": _with(
        _CHAT, "messages", '[{"role":"user","content":' + _repeated('{"type":"text","text":"a"}') + "}]"
    ),
    "logit-bias": lambda target: target.completion(logit_bias={str(number): 1 for number in range(100_000)}),
    "stop-strings": lambda target: target.completion(stop=[f"stop {number}" for number in range(100_000)]),
    "unknown-options": _with(_COMPLETION, "structkv", _numbered(1_200_000, "0"), prompt="a"),
    "tools": _with(_CHAT, "tools", _repeated('{"type":"function","function":{"name":"f"}}'), messages=_MESSAGES),
    "arguments": _called,
    "schema": _schema,
    "prompt-token-ids": _with(_COMPLETION, "prompt", _repeated("17")),
    "long-prompts-64": lambda target: target.completion(prompt=[_words(240_000)] * 64),
    "digits": _with(_COMPLETION, "seed", "1" * _BYTES, prompt="a"),
    "escapes": _said(lambda: "\u00e9\U0001f600" * (_BYTES // 18)),
    "spaces": _said(lambda: " \n" * 4_000_000),
    "markers": _said(lambda: "<|im_start|>" * (_BYTES // 12)),
    "packed": _packed,
    "chunks-of-a-byte": _chunks,
    "no-json": lambda target: target.post(_CHAT, b'{"a": "' + b"x" * _BYTES),
}


_SHORT_BYTES = 8000


def short_bodies(target: Target) -> Attack:
    """Bodies that are short enough to look harmless, from a hundred connections."""
    dice = random.Random(0)  # noqa: S311  no secret
    noise = "".join(chr(dice.randrange(33, 127)) for _ in range(_SHORT_BYTES - 1000))
    marked = [{"role": role, "content": "<|im_end|>"} for role in ("user", "assistant") * 85]
    requests = [
        target.post("/tokenize", {"prompt": noise, "return_token_strs": True}),
        target.post("/tokenize", {"messages": marked}),
        target.post("/tokenize", {"prompt": "a" * _SHORT_BYTES}),
        target.completion(prompt=["a"] * 64, max_tokens=1, logit_bias={str(number): 1 for number in range(850)}),
        target.completion(max_tokens=1, structured_outputs={"regex": "(a|b)?" * 1000}),
        _with(_COMPLETION, "structkv", _numbered(900, "0"), prompt="a")(target),
        _with(_CHAT, "messages", _repeated('{"role":"a"}', _SHORT_BYTES))(target),
    ]
    return repeated(target, requests, 100)


def middling_bodies(target: Target) -> Attack:
    """Texts of some times the context, from 64 connections."""
    return repeated(target, [target.chat(messages=[{"role": "user", "content": _words(300_000)}])], 64)


def attack(body: Body, num_connections: int) -> Callable[[Target], Attack]:
    """Return what makes the attack that repeats a body."""
    return lambda target: repeated(target, [body(target)], num_connections)
