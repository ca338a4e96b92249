"""The other client: streams, asks short questions, counts tokens, and looks whether the service is well."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.attack.usage import Usage

_STREAM = {"prompt": "Once upon a time", "max_tokens": 512}
_SHORT = {"prompt": "The capital of France is", "max_tokens": 4}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
_HEALTH_SECONDS = 0.1
_SHORT_SECONDS = 1.0
_RETRY_SECONDS = 0.1
_MEMORY_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service is, as the victim knows it.

    Attributes:
        url: of the gateway.
        key: the victim's own API key.
        model: the served model's name.
        worker: the decode worker's address.
        metrics_url: of that worker's metrics.
    """

    url: str
    key: str
    model: str
    worker: str
    metrics_url: str


@dataclass(slots=True)
class Phase:
    """What the victim saw in one phase; times in seconds. What the phase's end cut off took at least so long.

    Attributes:
        gaps: between two pieces of a stream.
        first_tokens: of streams and short requests, from asking to the first token.
        formed: the same of short requests whose answer follows a trivial schema.
        tokenized: how long `/tokenize` of a short text took.
        health: how long until `/health` of the gateway answered with 200.
        worker: how long until the decode worker's health check, or its metrics, did.
        failures: what did not work, and how often.
        memory: the most bytes that each process had.
        cpu: how many cores each process used.
    """

    gaps: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    formed: list[float] = field(default_factory=list)
    tokenized: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    memory: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


async def watch(service: Service, seconds: float, usage: Usage) -> Phase:
    """Use the service for so long, in every way at the same time."""
    phase = Phase()
    before, started = usage.cpu(), time.perf_counter()
    async with _http(service) as http, grpc.aio.insecure_channel(service.worker) as channel:
        victim = _Victim(service, http, phase)
        parts = (
            victim.stream(),
            victim.ask_shortly({}, phase.first_tokens),
            victim.ask_shortly({"response_format": _SCHEMA}, phase.formed),
            _every(_SHORT_SECONDS, victim.tokenize, phase.tokenized),
            _every(_HEALTH_SECONDS, partial(_answers, http, "/health"), phase.health),
            _every(_SHORT_SECONDS, partial(_answers, http, service.metrics_url), phase.worker),
            _every(_SHORT_SECONDS, partial(_serves, channel), phase.worker),
            _watch_memory(phase, usage),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for part in parts:
                    tasks.create_task(part)
    took = time.perf_counter() - started
    phase.cpu = {name: (cpu - before[name]) / took for name, cpu in usage.cpu().items()}
    return phase


async def answers_again(service: Service, seconds: float) -> float | None:
    """Return after how many seconds a short request had its answer; None if none had in so many."""
    started = time.perf_counter()
    async with _http(service) as http:
        victim = _Victim(service, http, Phase())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await victim.complete(_SHORT, [], []):
                    pass
                return time.perf_counter() - started
    return None


class _Victim:
    """Asks, and notes in a phase what came of it."""

    def __init__(self, service: Service, http: httpx.AsyncClient, phase: Phase) -> None:
        self._service = service
        self._http = http
        self._phase = phase

    async def stream(self) -> None:
        """Read one stream after the other."""
        while True:
            await self.complete(_STREAM, self._phase.first_tokens, self._phase.gaps)

    async def ask_shortly(self, fields: dict[str, object], first_tokens: list[float]) -> None:
        """Ask for a short answer now and then."""
        while True:
            await self.complete({**_SHORT, **fields}, first_tokens, [])
            await asyncio.sleep(_SHORT_SECONDS)

    async def complete(self, fields: dict[str, object], first_tokens: list[float], gaps: list[float]) -> bool:
        """Stream a greedy completion; tell whether it came to its end."""
        into, since = first_tokens, time.perf_counter()
        try:
            async for _ in self._pieces(fields):
                now = time.perf_counter()
                into.append(now - since)
                into, since = gaps, now
        except asyncio.CancelledError:
            _note_cut(into, time.perf_counter() - since)
            raise
        except (httpx.HTTPError, _RefusedError) as error:
            self._phase.failures[str(error) or type(error).__name__] += 1
            await asyncio.sleep(_RETRY_SECONDS)
            return False
        return True

    async def _pieces(self, fields: dict[str, object]) -> AsyncIterator[None]:
        body = {"model": self._service.model, "temperature": 0, "ignore_eos": True, "stream": True, **fields}
        async with self._http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.is_error:
                raise _RefusedError(f"completion {reply.status_code}")
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise _RefusedError(f"stream ended by {chunk['error'].get('type')}")
                    if any(choice.get("text") for choice in chunk["choices"]):
                        yield

    async def tokenize(self) -> bool:
        """Ask for the tokens of a short text; tell whether they came."""
        reply = await self._http.post("/tokenize", json={"prompt": "Hello there"})
        if reply.is_error:
            self._phase.failures[f"tokenize {reply.status_code}"] += 1
        return reply.is_success


class _RefusedError(Exception):
    """The service said no; the text is what is counted."""


def _http(service: Service) -> httpx.AsyncClient:
    """Return a client with a new connection for each request, as whoever comes anew needs one."""
    return httpx.AsyncClient(
        base_url=service.url,
        headers={"Authorization": f"Bearer {service.key}"},
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=None,  # noqa: S113  the phase's end is the limit
    )


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    return (await http.get(url)).is_success


async def _serves(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
    reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_SHORT_SECONDS)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def _every(seconds: float, call: Callable[[], Awaitable[bool]], into: list[float]) -> None:
    """Time a call again and again, each `seconds` after the one before began, or once that has ended."""
    while True:
        due = time.perf_counter() + seconds
        await _until(call, into)
        await asyncio.sleep(due - time.perf_counter())


async def _until(call: Callable[[], Awaitable[bool]], into: list[float]) -> None:
    """Call until it is true, and note the seconds since the first time."""
    started = time.perf_counter()
    try:
        while not await _tried(call):  # noqa: ASYNC110  nothing here could set an event
            await asyncio.sleep(_RETRY_SECONDS)
    except asyncio.CancelledError:
        _note_cut(into, time.perf_counter() - started)
        raise
    into.append(time.perf_counter() - started)


async def _tried(call: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await call()
    except (httpx.HTTPError, grpc.RpcError):
        return False


def _note_cut(into: list[float], seconds: float) -> None:
    """Note what was cut off only if it is the longest: else it says nothing."""
    if seconds > max(into, default=0.0):
        into.append(seconds)


async def _watch_memory(phase: Phase, usage: Usage) -> None:
    while True:
        for name, size in (await asyncio.to_thread(usage.memory)).items():
            phase.memory[name] = max(size, phase.memory.get(name, 0))
        await asyncio.sleep(_MEMORY_SECONDS)
