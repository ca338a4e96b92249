"""Whatever one client sends, the streams of others and the health check go on: real processes, real sockets."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest

from common.pb import decode_pb2
from common.settings import DEFAULT_MODEL
from services.gateway.requests.messages import MAX_MESSAGES
from services.gateway.tokenization import MAX_DETOKENIZED
from tests.gateway.conftest import Step, as_asked, events, until
from tests.gateway.test_process import Running, running

MODEL = {"model": DEFAULT_MODEL}
CHAT = {**MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
ENDLESS = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
ENDLESS["json_schema"]["schema"] = {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}"} for n in range(2, 30)]}  # type: ignore[index]
"""A schema of a kilobyte that takes minutes to check."""
LONG = json.dumps({"prompt": "word " * 10_000}).encode()
TICK_SECONDS = 0.02
STREAM_TOKENS = 5000
MB = 2**20


def with_field(name: str, value: str) -> bytes:
    return f'{json.dumps(CHAT)[:-1]},"{name}":{value}}}'.encode()


def attacks() -> dict[str, tuple[str, bytes]]:
    """Return paths and bodies, each of which takes a second or more to be read."""
    text = "the quick brown fox jumps over it. " * (8 * MB // 35)
    return {
        "text": ("/v1/completions", json.dumps(MODEL | {"prompt": text}).encode()),
        "conversation": ("/v1/chat/completions", json.dumps(CHAT | {"messages": messages(text, 1)}).encode()),
        "word": ("/v1/completions", json.dumps(MODEL | {"prompt": "a" * MB}).encode()),
        "messages": (
            "/v1/chat/completions",
            json.dumps(CHAT | {"messages": messages("x" * 500, MAX_MESSAGES)}).encode(),
        ),
        "metadata": (
            "/v1/chat/completions",
            with_field("metadata", json.dumps(dict.fromkeys(map(str, range(300_000)), 1))),
        ),
        "nested": ("/v1/chat/completions", with_field("unknown", f"[{'[],' * MB}[]]")),
        "choices": ("/v1/chat/completions", with_field("guided_choice", f"[{'1,' * MB}1]")),
        "grammar": ("/v1/chat/completions", json.dumps(CHAT | {"response_format": ENDLESS}).encode()),
        "tokenize": ("/tokenize", json.dumps({"prompt": text[:MB]}).encode()),
        "detokenize": ("/detokenize", json.dumps({"tokens": [500] * MAX_DETOKENIZED}).encode()),
    }


def messages(text: str, num_messages: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}] * num_messages


def script(request: decode_pb2.GenerateRequest) -> list[Step]:
    """Return a slow stream for a victim, and what is asked for others."""
    if request.sampling.max_tokens != STREAM_TOKENS:
        return as_asked(request)
    return [step for event in events([500] * STREAM_TOKENS) for step in (event, TICK_SECONDS)]


@asynccontextmanager
async def attacked(**settings: object) -> AsyncIterator[Running]:
    async with running(**settings) as gateway:
        gateway.decode.script_for = script
        gateway.http.timeout = httpx.Timeout(150)
        await post(gateway, "/tokenize", LONG)  # the server of the processes is there now
        await until(lambda: is_idle(gateway))  # and the process that read this is no longer
        yield gateway


@asynccontextmanager
async def victims(gateway: Running) -> AsyncIterator[list[float]]:
    """Stream an answer and ask for the health all the time; yield the growing list of waits (seconds)."""
    waits: list[float] = []

    async def stream() -> None:
        body = MODEL | {"prompt": "Once", "max_tokens": STREAM_TOKENS, "stream": True}
        async with gateway.http.stream("POST", "/v1/completions", json=body) as response:
            last = time.monotonic()
            async for _ in response.aiter_bytes():
                waits.append(time.monotonic() - last)
                last = time.monotonic()

    async def ask() -> None:
        while True:
            began = time.monotonic()
            assert (await gateway.http.get("/health")).status_code == 200
            waits.append(time.monotonic() - began)
            await asyncio.sleep(TICK_SECONDS)

    tasks = [asyncio.create_task(stream()), asyncio.create_task(ask())]
    try:
        yield waits
    finally:
        for task in tasks:
            assert not task.done(), "the stream has ended"
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def processes_of(gateway: Running) -> list[psutil.Process]:
    """Return the processes that read requests now."""
    (server,) = psutil.Process(gateway.process.pid).children()
    return server.children()


async def is_reading(gateway: Running) -> bool:
    return bool(processes_of(gateway))


async def is_idle(gateway: Running) -> bool:
    return not processes_of(gateway)


async def metrics(gateway: Running) -> str:
    return (await gateway.http.get("/metrics")).text


async def tells(gateway: Running, line: str) -> bool:
    return line in await metrics(gateway)


async def post(gateway: Running, path: str, body: bytes, **headers: str) -> httpx.Response:
    return await gateway.http.post(path, content=body, headers=headers)


async def test_whatever_one_client_sends_the_others_go_on() -> None:
    async with attacked() as gateway, victims(gateway) as waits:
        for name, (path, body) in attacks().items():
            began, before = time.monotonic(), len(waits)
            assert (await post(gateway, path, body)).status_code in {200, 400}, name
            # What stalls the others does so for all of its own time; a busy machine only for a part of it.
            assert max(waits[before:]) < max(2, (time.monotonic() - began) / 3), name


async def test_a_short_request_does_not_wait_for_those_that_take_long() -> None:
    """Nor does one with a form, though many wait whose forms are as short and take for ever."""
    path, endless = attacks()["grammar"]
    async with attacked() as gateway:
        waiting = [asyncio.create_task(post(gateway, path, endless)) for _ in range(12)]
        await until(lambda: is_reading(gateway))
        quick = CHAT | {"response_format": {"type": "json_object"}}
        assert (await post(gateway, path, json.dumps(CHAT).encode())).status_code == 200
        assert (await post(gateway, path, json.dumps(quick).encode())).status_code == 200
        assert not any(task.done() for task in waiting[2:])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: is_idle(gateway))


async def test_what_takes_too_long_is_refused() -> None:
    path, endless = attacks()["grammar"]
    async with attacked() as gateway:
        refused = await post(gateway, path, endless)
        assert refused.status_code == 400
        assert "seconds to be read" in refused.json()["error"]["message"]
        assert 'structkv_intake_broken_off_total{reason="time"} 1.0' in await metrics(gateway)


async def test_what_takes_too_much_memory_is_refused() -> None:
    path, endless = attacks()["grammar"]
    async with attacked() as gateway:
        refused = await post(gateway, path, endless + b" " * MB)  # which has more time
        assert refused.status_code == 400
        assert "memory" in refused.json()["error"]["message"]


@pytest.mark.parametrize("end", ["client", "deadline"])
async def test_nobody_reads_on_for_a_client_that_has_given_up(end: str) -> None:
    path, endless = attacks()["grammar"]
    endless += b" " * MB  # which has more time
    async with attacked() as gateway:
        headers = {"X-Request-Timeout": "2"} if end == "deadline" else {}
        asking = asyncio.create_task(post(gateway, path, endless, **headers))
        await until(lambda: is_reading(gateway))
        if end == "client":
            asking.cancel()
        else:
            assert (await asking).status_code == 504
        await until(lambda: is_idle(gateway))
        await until(lambda: tells(gateway, 'structkv_intake_broken_off_total{reason="left"} 1.0'))


@pytest.mark.parametrize("killed", ["process", "server"])
async def test_a_process_that_dies_fails_its_own_request_only(killed: str) -> None:
    path, endless = attacks()["grammar"]
    endless += b" " * MB  # which has more time
    async with attacked() as gateway, victims(gateway):
        asking = asyncio.create_task(post(gateway, path, endless))
        await until(lambda: is_reading(gateway))
        (process,) = processes_of(gateway)
        if killed == "server":
            process.parent().kill()
        process.kill()
        assert (await asking).status_code == 500
        assert 'structkv_intake_broken_off_total{reason="died"} 1.0' in await metrics(gateway)
        answer = await post(gateway, "/tokenize", LONG)
        assert answer.json()["count"] == 10_001


async def test_all_memory_comes_back_and_what_is_ignored_is_not_kept() -> None:
    """While the answers to requests with large `metadata` run, none of it is held."""
    fields = {"metadata": {"a": "x" * 12 * MB}, "unknown": ["x" * MB], "max_tokens": STREAM_TOKENS, "stream": True}
    body = json.dumps(CHAT | fields).encode()
    async with attacked() as gateway:
        process = psutil.Process(gateway.process.pid)
        await post(gateway, "/v1/completions", attacks()["word"][1])
        before = process.memory_info().rss
        streams = [gateway.http.stream("POST", "/v1/chat/completions", content=body) for _ in range(8)]
        for stream in streams:
            await (await stream.__aenter__()).aiter_bytes().__anext__()
        assert process.memory_info().rss - before < 40 * MB
        for stream in streams:
            await stream.__aexit__(None, None, None)


async def test_it_ends_with_the_gateway() -> None:
    """However the gateway ends, and whatever is being read."""
    path, endless = attacks()["grammar"]
    async with attacked() as gateway:
        asking = asyncio.create_task(post(gateway, path, endless))
        await until(lambda: is_reading(gateway))
        left = [process.parent() for process in processes_of(gateway)] + processes_of(gateway)
        gateway.process.send_signal(signal.SIGKILL)
        await asyncio.gather(asking, return_exceptions=True)

        async def are_gone() -> bool:
            return not any(process.is_running() and process.status() != "zombie" for process in left)

        await until(are_gone)


async def test_processes_step_back() -> None:
    path, endless = attacks()["grammar"]
    async with attacked() as gateway:
        asking = asyncio.create_task(post(gateway, path, endless))
        await until(lambda: is_reading(gateway))
        (process,) = processes_of(gateway)

        async def has_stepped_back() -> bool:
            return process.nice() > os.getpriority(os.PRIO_PROCESS, gateway.process.pid)

        await until(has_stepped_back)
        asking.cancel()
