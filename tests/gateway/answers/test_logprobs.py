"""Log probabilities in OpenAI's two shapes."""

import math

import pytest

from common.pb import decode_pb2
from services.gateway.answers.token_bytes import TokenBytes
from services.gateway.text_model import TextModel
from tests.gateway.conftest import LENGTH, SKELETON, STOP, Gateway, events
from tests.gateway.test_api import error_of, frames


def script(gateway: Gateway, model: TextModel, text: str, top: int, finish: int = LENGTH) -> list[int]:
    ids = model.tokenizer.encode(text).ids
    gateway.decode.script = events(ids, finish, top_logprobs=top)
    return ids


async def test_a_completions_shape(gateway: Gateway, text_model: TextModel) -> None:
    ids = script(gateway, text_model, " upon a time", 2)
    logprobs = (await gateway.complete(logprobs=2)).json()["choices"][0]["logprobs"]
    decode = text_model.tokenizer.decode
    assert logprobs == {
        "tokens": [" upon", " a", " time"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{decode([token_id + 1]): -0.25, decode([token_id]): -0.5} for token_id in ids],
        "text_offset": [0, 5, 7],
    }


@pytest.mark.parametrize("top", [0, 1])
async def test_a_completions_chosen_token_is_always_among_the_likeliest(
    gateway: Gateway, text_model: TextModel, top: int
) -> None:
    script(gateway, text_model, " upon", top)
    (top_logprobs,) = (await gateway.complete(logprobs=top)).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert top_logprobs[" upon"] == -0.5
    assert len(top_logprobs) == top + 1


async def test_a_chats_shape(gateway: Gateway, text_model: TextModel) -> None:
    ids = script(gateway, text_model, " upon a", 1)
    logprobs = (await gateway.chat(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]
    likelier = [text_model.tokenizer.decode([token_id + 1]) for token_id in ids]
    assert logprobs["refusal"] is None
    assert logprobs["content"] == [
        {
            "token": token,
            "logprob": -0.5,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": other, "logprob": -0.25, "bytes": list(other.encode())}],
        }
        for token, other in zip([" upon", " a"], likelier, strict=True)
    ]


async def test_a_stop_token_that_is_not_text_has_none(gateway: Gateway, text_model: TextModel) -> None:
    script(gateway, text_model, " fine<|im_end|>", 0, STOP)
    choice = (await gateway.complete(logprobs=0)).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == [" fine"]


async def test_what_lies_behind_a_stop_string_has_none(gateway: Gateway, text_model: TextModel) -> None:
    script(gateway, text_model, " upon a time", 0)
    choice = (await gateway.complete(logprobs=0, stop=" a t")).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]["tokens"]) == (" upon", [" upon"])


async def test_they_are_streamed_with_their_text(gateway: Gateway, text_model: TextModel) -> None:
    script(gateway, text_model, " upon 語 a time", 0)
    *chunks, last = frames(await gateway.complete(logprobs=0, stop=[" a moment"], stream=True))
    assert last["choices"][0]["logprobs"] is None
    for choice in (chunk["choices"][0] for chunk in chunks):
        tokens = choice["logprobs"]["tokens"]
        if not any(token.startswith("bytes:") for token in tokens):
            assert "".join(tokens) == choice["text"]
    assert [chunk["choices"][0]["text"] for chunk in chunks if "語" in chunk["choices"][0]["text"]]


async def test_a_part_of_a_character_is_named_by_its_bytes(gateway: Gateway, text_model: TextModel) -> None:
    script(gateway, text_model, "日", 0)
    tokens = (await gateway.complete(logprobs=0)).json()["choices"][0]["logprobs"]
    assert tokens["tokens"] == ["bytes:\\xe6\\x97", "bytes:\\xa5"]
    assert tokens["text_offset"] == [0, 0]
    content = (await gateway.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["\\xe6\\x97", "\\xa5"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "日"


async def test_without_probability_is_still_a_number(gateway: Gateway) -> None:
    event = decode_pb2.GenerateEvent(token_ids=[42], finish_reason=LENGTH, skeleton=SKELETON)
    event.logprobs.append(decode_pb2.TokenLogprobs(logprob=-math.inf, top_token_ids=[7], top_logprobs=[-math.inf]))
    gateway.decode.script = [event]
    logprobs = (await gateway.complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0]


async def test_a_worker_that_gives_none_is_an_error(gateway: Gateway) -> None:
    error_of(await gateway.complete(logprobs=1), 500)


@pytest.mark.parametrize("text", ["日本語 👩‍👩‍👧‍👦\n  x", "naïve <|im_end|>", "  two\t\xa0spaces"])
def test_tokens_bytes_join_to_the_text(text_model: TextModel, text: str) -> None:
    token_bytes = TokenBytes(text_model.tokenizer)
    assert b"".join(map(token_bytes.of, text_model.tokenizer.encode(text).ids)).decode() == text
