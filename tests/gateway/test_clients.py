"""Over real sockets: the official client reads the answers, and whoever leaves stops the work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import httpx
import openai
import pytest

from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel
from tests.gateway.conftest import (
    Gateway,
    ScriptedDecode,
    StartGateway,
    events,
    free_port,
    grpc_worker,
    listening,
    until,
)

TwoWorkers = tuple[Gateway, ScriptedDecode, ScriptedDecode]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def base_url(gateway: Gateway) -> AsyncIterator[str]:
    async with listening(gateway.app) as url:
        yield url


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_official_client_reads_a_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=DEFAULT_MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == " upon a time"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_the_official_client_reads_a_stream_with_stats(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=DEFAULT_MODEL,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"structkv": {"return_stats": True}},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == " upon a time"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["structkv"]["pivot_layer"] == 12


async def test_the_official_client_reads_completions(client: openai.AsyncOpenAI) -> None:
    plain = await client.completions.create(model=DEFAULT_MODEL, prompt="Once")
    stream = await client.completions.create(model=DEFAULT_MODEL, prompt="Once", stream=True)
    assert plain.choices[0].text == "".join([chunk.choices[0].text async for chunk in stream]) == " upon a time"


async def test_the_official_client_lists_the_model(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [DEFAULT_MODEL]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, openai.RateLimitError),
        (grpc.StatusCode.UNAVAILABLE, openai.InternalServerError),
        (grpc.StatusCode.OUT_OF_RANGE, openai.BadRequestError),
    ],
)
async def test_the_official_client_knows_the_errors(
    client: openai.AsyncOpenAI, gateway: Gateway, script: grpc.StatusCode, error: type[openai.APIError]
) -> None:
    gateway.decode.script = [script]
    with pytest.raises(error):
        await client.completions.create(model=DEFAULT_MODEL, prompt="Once", stream=True)


async def test_the_official_client_sees_a_stream_break(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.decode.script[1] = grpc.StatusCode.INTERNAL
    stream = await client.completions.create(model=DEFAULT_MODEL, prompt="Once", stream=True)
    with pytest.raises(openai.APIError, match="as scripted"):
        _ = [chunk async for chunk in stream]


async def test_tokens_are_not_kept_back(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.decode.script.insert(1, 30.0)
    async with asyncio.timeout(5):
        stream = await client.completions.create(model=DEFAULT_MODEL, prompt="Once", stream=True)
        assert (await anext(aiter(stream))).choices[0].text == " upon"
        await stream.close()


@pytest.mark.parametrize("pause_at", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_call(
    gateway: Gateway, base_url: str, stream: bool, pause_at: int
) -> None:
    gateway.decode.script.insert(pause_at, 30.0)
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(timeout=0.5) as http:
            await http.post(f"{base_url}/v1/completions", json=body)
    async with asyncio.timeout(1):
        await gateway.decode.cancelled.wait()


@pytest.fixture
async def two(start_gateway: StartGateway, text_model: TextModel) -> AsyncIterator[TwoWorkers]:
    """A gateway and two decode workers that answer alike."""
    first, second = (ScriptedDecode(events(text_model.tokenizer.encode(" upon a time").ids)) for _ in range(2))
    async with grpc_worker(first) as one, grpc_worker(second) as other:
        yield await start_gateway(decode_workers=f"{one},{other}"), first, second


async def test_requests_at_the_same_time_are_spread(two: TwoWorkers) -> None:
    gateway, first, second = two
    first.script.insert(0, 0.3)
    second.script.insert(0, 0.3)
    await asyncio.gather(*(gateway.complete() for _ in range(4)))
    assert len(first.requests) == len(second.requests) == 2


async def test_a_long_prompt_weighs_more_than_short_ones(two: TwoWorkers) -> None:
    gateway, first, second = two
    for worker in (first, second):
        worker.script.insert(0, 1.0)
    long = asyncio.create_task(gateway.complete(prompt=[42] * 1000))

    async def one_is_busy() -> bool:
        return bool(first.requests or second.requests)

    await until(one_is_busy)
    busy, idle = (first, second) if first.requests else (second, first)
    await asyncio.gather(long, *(gateway.complete() for _ in range(3)))
    assert (len(busy.requests), len(idle.requests)) == (1, 3)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_worker_that_cannot_hands_over_to_the_next(two: TwoWorkers, code: grpc.StatusCode) -> None:
    gateway, first, second = two
    for worker in (first, second):
        worker.script = [code]
    assert (await gateway.complete()).status_code in {429, 503}
    assert first.requests
    assert second.requests
    second.script = events([42])
    assert (await gateway.complete()).status_code == 200


async def test_a_worker_that_dies_is_passed_over(start_gateway: StartGateway, text_model: TextModel) -> None:
    worker = ScriptedDecode(events([42]))
    async with AsyncExitStack() as dying, grpc_worker(worker) as survivor:
        dead = await dying.enter_async_context(grpc_worker(ScriptedDecode(events([42]))))
        gateway = await start_gateway(decode_workers=f"{dead},{survivor}", health_interval_seconds=60)
        assert (await gateway.complete()).status_code == 200
        await dying.aclose()
        worker.requests.clear()
        for _ in range(3):
            assert (await gateway.complete()).status_code == 200
        assert len(worker.requests) == 3


async def test_a_worker_that_starts_late_is_used(start_gateway: StartGateway) -> None:
    port = free_port()
    gateway = await start_gateway(decode_workers=f"127.0.0.1:{port}", health_interval_seconds=60)
    assert (await gateway.complete()).status_code == 503
    async with grpc_worker(ScriptedDecode(events([42])), port):
        await asyncio.sleep(0.5)  # the channel's reconnect backoff
        assert (await gateway.complete()).status_code == 200
