"""A stream has its status before its first token, and is never silent for long."""

import asyncio
import time

import grpc
import httpx
import openai
import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, StartGateway, listening
from tests.gateway.test_api import error_of, frames

COMMENT = ": keep-alive\n\n"
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}, "structkv": {"return_stats": True}}


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.answers.streaming._STATUS_SECONDS", 0.2)


async def test_the_status_comes_before_the_first_token(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stream_heartbeat_seconds=0.2)
    first_token = asyncio.Event()
    gateway.decode.script.insert(0, first_token)
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}
    async with (
        listening(gateway.app) as url,
        httpx.AsyncClient(base_url=url, timeout=5) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        assert response.headers["x-request-id"]
        text = ""
        async for part in response.aiter_text():
            text += part
            if text.count(COMMENT) >= 3:
                first_token.set()
    assert text.startswith(COMMENT * 3)
    assert text.endswith("data: [DONE]\n\n")


async def test_it_says_the_same_as_without(start_gateway: StartGateway) -> None:
    quick = await (await start_gateway()).chat(**WITH_USAGE)
    slow = await start_gateway(stream_heartbeat_seconds=0.1)
    for place in (4, 2, 0):
        slow.decode.script.insert(place, 0.5)
    late = await slow.chat(**WITH_USAGE)
    assert late.text.count(COMMENT) > 3
    for one, other in zip(frames(quick), frames(late), strict=True):
        for unlike in ("id", "created"):
            one.pop(unlike), other.pop(unlike)
        assert (one.get("structkv") or {}).pop("ttft_seconds", 0) < 0.5 or not one
        assert (other.get("structkv") or {}).pop("ttft_seconds", 1) >= 0.5
        assert one == other


async def test_a_failure_before_the_first_token_is_an_event_then(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stream_heartbeat_seconds=0.1)
    gateway.decode.script = [0.5, grpc.StatusCode.RESOURCE_EXHAUSTED]
    response = await gateway.complete(stream=True)
    assert response.status_code == 200
    *comments, error, done, rest = response.text.split("\n\n")
    assert set(comments) == {": keep-alive"}
    assert '"code":"overloaded"' in error
    assert (done, rest) == ("data: [DONE]", "")


async def test_a_failure_that_is_known_at_once_has_its_own_status(gateway: Gateway) -> None:
    gateway.decode.script = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    error_of(await gateway.complete(stream=True), 429)
    error_of(await gateway.complete(stream=True, max_tokens=10**6), 400)


async def test_zero_turns_it_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stream_heartbeat_seconds=0)
    gateway.decode.script = [0.5, grpc.StatusCode.RESOURCE_EXHAUSTED]
    error_of(await gateway.complete(stream=True), 429)


async def test_a_plain_answer_waits_for_its_status(gateway: Gateway) -> None:
    gateway.decode.script = [0.5, grpc.StatusCode.RESOURCE_EXHAUSTED]
    error_of(await gateway.complete(), 429)


async def test_one_that_leaves_before_the_first_token_cancels_the_call(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stream_heartbeat_seconds=0.1)
    gateway.decode.script.insert(0, asyncio.Event())
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}
    async with listening(gateway.app) as url, httpx.AsyncClient(base_url=url) as http:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_text())
        async with asyncio.timeout(5):
            await gateway.decode.cancelled.wait()


async def test_the_official_client_takes_comments(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stream_heartbeat_seconds=0.1)
    gateway.decode.script.insert(0, 0.5)
    gateway.decode.script.insert(2, 0.5)
    async with (
        listening(gateway.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.completions.create(model=DEFAULT_MODEL, prompt="Once", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == " upon a time"
        gateway.decode.script = [0.5, grpc.StatusCode.INTERNAL]
        with pytest.raises(openai.APIError, match="as scripted"):
            _ = [chunk async for chunk in await client.completions.create(model=DEFAULT_MODEL, prompt="a", stream=True)]


async def test_the_real_bound_is_two_seconds(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    gateway = await start_gateway()
    gateway.decode.script.insert(0, asyncio.Event())
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}
    async with listening(gateway.app) as url, httpx.AsyncClient(base_url=url) as http:
        started = time.monotonic()
        async with http.stream("POST", "/v1/completions", json=body) as response:
            assert await anext(response.aiter_text()) == COMMENT
            assert 1 < time.monotonic() - started < 2.5
