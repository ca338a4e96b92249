"""HTTP as an attacker writes it: bytes on a socket, and no more care for the answer than to count it."""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

_SLICE_BYTES = 256 * 1024
_PAUSE_SECONDS = 0.02
"""After a connection that failed at once: a loop that never waits would measure the attacker."""

_ESTABLISHED = 1
"""The state of an open connection in Linux' `tcp_info`."""

Tally = Counter[str]
"""What the attacker got: how many answers of each status, and how many connections that ended without one."""

Attack = Callable[[Tally], Coroutine[Any, Any, None]]
"""Goes on until it is cancelled."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the service is, as the attacker knows it.

    Attributes:
        host: of every port.
        port: of the gateway.
        key: the attacker's own API key.
        model: the served model's name.
        vocab_size: of that model, in tokens.
        metrics_port: of the decode worker's metrics.
        worker_port: of the decode worker's calls.
    """

    host: str
    port: int
    key: str
    model: str
    vocab_size: int
    metrics_port: int
    worker_port: int

    def post(self, path: str, body: dict[str, object] | bytes, *headers: str) -> bytes:
        """Return a whole request with the key, after whose answer the connection ends."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.head(path, len(content), *headers) + content

    def head(self, path: str, num_bytes: int, *headers: str, key: bool = True) -> bytes:
        """Return the head of a request that announces a body of so many bytes."""
        authorization = [f"Authorization: Bearer {self.key}"] if key else []
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {num_bytes}",
            *authorization,
            *headers,
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def completion(self, **fields: object) -> bytes:
        """Return a request for a completion of a short prompt, unless the fields have another."""
        return self.post("/v1/completions", {"model": self.model, "prompt": "The river", **fields})

    def chat(self, **fields: object) -> bytes:
        """Return a request for an answer to a short question, unless the fields have other messages."""
        messages = [{"role": "user", "content": "Hello"}]
        return self.post("/v1/chat/completions", {"model": self.model, "messages": messages, **fields})


@contextlib.asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection; it is reset at the end, whatever is still to come."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(target: Target, request: bytes, tally: Tally) -> None:
    """Send a request on a connection of its own, read its answer to the end, and count its status.

    An answer may come before the request is sent: that is then not sent to its end.
    """
    status = "no connection"
    try:
        async with connection(target.host, target.port) as (reader, writer):
            status = "closed"
            sending = asyncio.create_task(_send(writer, request))
            try:
                status = await _status(reader)
                while await reader.read(_SLICE_BYTES):
                    pass
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except asyncio.CancelledError:
        status = "still waiting" if status == "closed" else f"{status}, cut"
        raise
    except (OSError, EOFError):
        await asyncio.sleep(_PAUSE_SECONDS)
    finally:
        tally[status] += 1


async def _send(writer: asyncio.StreamWriter, request: bytes) -> None:
    view = memoryview(request)
    with contextlib.suppress(OSError):  # the answer says why
        for start in range(0, len(view), _SLICE_BYTES):
            writer.write(view[start : start + _SLICE_BYTES])
            await writer.drain()


async def _status(reader: asyncio.StreamReader) -> str:
    line = await reader.readuntil(b"\r\n")
    return line.split(b" ")[1].decode("ascii", "replace")


def repeated(target: Target, requests: list[bytes], num_connections: int = 1) -> Attack:
    """Return the attack that sends these requests in turn without a pause, over so many connections at a time."""

    async def one(number: int, tally: Tally) -> None:
        while True:
            await ask(target, requests[number % len(requests)], tally)
            number += 1

    async def attack(tally: Tally) -> None:
        await asyncio.gather(*(one(number, tally) for number in range(num_connections)))

    return attack


def left(
    target: Target, request: bytes, num_connections: int, seconds: float | None, *, resets: bool = False
) -> Attack:
    """Return the attack that sends a request and leaves, over and over, over so many connections at a time.

    It leaves after some seconds, or if None with the first byte that comes; with a reset, or closing its side first.
    """

    async def one(tally: Tally) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(target.host, target.port)
                writer.write(request)
                await writer.drain()
                await (reader.read(1) if seconds is None else asyncio.sleep(seconds))
            except OSError:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if resets:
                writer.transport.abort()
            else:
                writer.close()
            tally["left"] += 1

    async def attack(tally: Tally) -> None:
        await asyncio.gather(*(one(tally) for _ in range(num_connections)))

    return attack


def once(target: Target, requests: list[bytes]) -> Attack:
    """Return the attack that sends all these requests side by side, one time."""

    async def attack(tally: Tally) -> None:
        await asyncio.gather(*(ask(target, request, tally) for request in requests))

    return attack


def held(host: str, port: int, num_connections: int, first: bytes, each_second: bytes = b"") -> Attack:
    """Return the attack that holds so many connections, sends bytes over each, and reads nothing.

    A connection that is closed is opened again.
    """

    async def one(tally: Tally) -> None:
        while True:
            outcome = "no connection"
            try:
                async with connection(host, port) as (_, writer):
                    outcome = "closed"
                    await _hold(writer, first, each_second)
            except asyncio.CancelledError:
                outcome = "held" if outcome == "closed" else outcome
                raise
            except OSError:
                await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                tally[outcome] += 1

    async def attack(tally: Tally) -> None:
        await asyncio.gather(*(one(tally) for _ in range(num_connections)))

    return attack


async def _hold(writer: asyncio.StreamWriter, first: bytes, each_second: bytes) -> None:
    """Return when the other side has closed the connection. Nothing is read, so nothing else would tell."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # sockets' transports have it
    own = writer.get_extra_info("socket")
    writer.write(first)
    while own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED:
        await asyncio.sleep(1)
        writer.write(each_second)
