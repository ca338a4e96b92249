"""/tokenize and /detokenize, as vLLM's users know them, and /version."""

import importlib.metadata

import httpx
import pytest

from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel
from tests.gateway.conftest import Gateway, StartGateway
from tests.gateway.test_api import error_of

MESSAGES = [{"role": "user", "content": "Hi"}]


async def tokenize(gateway: Gateway, **body: object) -> httpx.Response:
    return await gateway.http.post("/tokenize", json=body)


async def detokenize(gateway: Gateway, **body: object) -> httpx.Response:
    return await gateway.http.post("/detokenize", json=body)


async def test_a_text(gateway: Gateway, text_model: TextModel) -> None:
    answer = (await tokenize(gateway, model=DEFAULT_MODEL, prompt="Once upon")).json()
    ids = text_model.tokenizer.encode("Once upon").ids
    assert answer == {"count": 2, "max_model_len": 8192, "tokens": ids, "token_strs": None}


async def test_the_tokens_as_the_vocabulary_has_them(gateway: Gateway) -> None:
    answer = (await tokenize(gateway, prompt="Once upon", return_token_strs=True)).json()
    assert answer["token_strs"] == ["Once", "Ġupon"]


async def test_no_text_has_no_tokens(gateway: Gateway) -> None:
    assert (await tokenize(gateway, prompt="")).json()["tokens"] == []


@pytest.mark.parametrize("add", [True, False])
async def test_a_conversation(gateway: Gateway, text_model: TextModel, add: bool) -> None:
    tokens = (await tokenize(gateway, messages=MESSAGES, add_generation_prompt=add)).json()["tokens"]
    text = text_model.tokenizer.decode(tokens, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n" + "<|im_start|>assistant\n" * add)


async def test_a_conversation_has_the_tokens_that_chat_completions_sends(gateway: Gateway) -> None:
    tokens = (await tokenize(gateway, messages=MESSAGES)).json()["tokens"]
    await gateway.chat(messages=MESSAGES)
    assert list(gateway.decode.request.prompt_token_ids) == tokens


async def test_a_conversation_with_tools(gateway: Gateway) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    tokens = (await tokenize(gateway, messages=MESSAGES, tools=tools)).json()["tokens"]
    assert len(tokens) > len((await tokenize(gateway, messages=MESSAGES)).json()["tokens"])
    await gateway.chat(messages=MESSAGES, tools=tools)
    assert list(gateway.decode.request.prompt_token_ids) == tokens


@pytest.mark.parametrize("add", [None, True, False])
async def test_special_tokens_in_front(start_gateway: StartGateway, text_model: TextModel, add: bool | None) -> None:
    gateway = await start_gateway()
    body = {} if add is None else {"add_special_tokens": add}
    tokens = (await tokenize(gateway, prompt="Once", **body)).json()["tokens"]
    assert tokens == text_model.tokenizer.encode("Once", add_special_tokens=add is not False).ids


async def test_tokens_become_text_again(gateway: Gateway) -> None:
    text = "<|im_start|>naïve 日本語 👍🏽"
    tokens = (await tokenize(gateway, prompt=text)).json()["tokens"]
    assert (await detokenize(gateway, model=DEFAULT_MODEL, tokens=tokens)).json() == {"prompt": text}
    assert (await detokenize(gateway, tokens=[])).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "a", "add_generation_prompt": "yes"}, "add_generation_prompt"),
    ],
)
async def test_a_wrong_parameter_of_tokenize_is_named(gateway: Gateway, body: dict, param: str) -> None:
    assert error_of(await tokenize(gateway, **body), 400)["param"] == param


@pytest.mark.parametrize("tokens", [None, "5", [-1], [49152], [1.5], [True], [2**70], [[1]]])
async def test_wrong_tokens_are_named(gateway: Gateway, tokens: object) -> None:
    assert error_of(await detokenize(gateway, tokens=tokens), 400)["param"].startswith("tokens")


async def test_an_unknown_model_is_refused(gateway: Gateway) -> None:
    assert error_of(await tokenize(gateway, model="gpt-9", prompt="a"), 404)["code"] == "model_not_found"
    assert error_of(await detokenize(gateway, model="gpt-9", tokens=[1]), 404)["code"] == "model_not_found"


async def test_bodies_beyond_the_limit_are_refused(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_body_bytes=1000)
    error_of(await tokenize(gateway, prompt="x" * 1000), 413)
    error_of(await detokenize(gateway, tokens=[1] * 1000), 413)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/version"])
async def test_a_key_is_asked_for(start_gateway: StartGateway, path: str) -> None:
    gateway = await start_gateway(api_keys="a-key-of-sixteen-or-more-characters")
    method = "GET" if path == "/version" else "POST"
    error_of(await gateway.http.request(method, path, json={"prompt": "a", "tokens": [1]}), 401)


async def test_the_version(gateway: Gateway) -> None:
    assert (await gateway.http.get("/version")).json() == {"version": importlib.metadata.version("structkv")}
