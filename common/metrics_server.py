"""Serves a worker's metrics on the worker's own event loop, to few clients at a time and to none for long."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from common.exposition import Exposition

_MAX_CONNECTIONS = 16
_MAX_ANSWERING = 128
_MAX_HEAD_BYTES = 8 * 1024
_SECONDS = 10.0
"""For a request to come and its answer to be taken."""
_BACKLOG = 2048
"""Connections that wait to be taken, in turn and for a second at most; beyond it is chance who is heard."""
_ACCEPTED_AT_ONCE = 8
_PAUSE_SECONDS = 0.005
"""After so many: each takes a twentieth of a millisecond of the loop, which the worker needs for its tokens."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving_metrics(registry: CollectorRegistry, host: str, port: int | None) -> AsyncIterator[None]:
    """Answer scrapes at `/metrics` for as long as the context lasts, if there is a port to do so.

    Raises OSError where it cannot listen there.
    """
    if port is None:
        yield
        return
    scrapes = _Scrapes(Exposition(registry))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(scrapes.close)
        for family, address in await _addresses(host, port):
            listener = stack.enter_context(socket.create_server(address, family=family, backlog=_BACKLOG))
            listener.setblocking(False)
            stack.push_async_callback(_end, [asyncio.create_task(scrapes.accept(listener))])
        yield


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in (ending := list(tasks)):
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


class _Scrapes:
    """The connections. Beyond the bound the oldest makes room, so whoever holds many keeps nobody out.

    One that waits for the metrics has asked, and will soon have them: it makes room for nobody.
    """

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._holding = dict[asyncio.Task[None], None]()  # the oldest first
        self._answering = set[asyncio.Task[None]]()

    async def accept(self, listener: socket.socket) -> None:
        """Take connections, a few at a time: a flood of them takes its turn with everything else."""
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(_ACCEPTED_AT_ONCE):
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:  # it has left again, or too many files are open
                    logger.debug("scrape not taken", extra={"error": type(error).__name__})
                    break
                task = asyncio.create_task(self._serve(connection))
                task.add_done_callback(partial(_close, connection))  # also if it makes room before it has begun
                self._hold(task)
            await asyncio.sleep(_PAUSE_SECONDS)
            while len(self._answering) >= _MAX_ANSWERING:  # noqa: ASYNC110  for a tenth of a second
                await asyncio.sleep(_PAUSE_SECONDS)

    async def close(self) -> None:
        """End what runs."""
        await _end([*self._holding, *self._answering])

    def _hold(self, task: asyncio.Task[None]) -> None:
        """Keep a connection, if need be in the place of the oldest."""
        if len(self._holding) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._holding))
            del self._holding[oldest]
            oldest.cancel()
        self._holding[task] = None

    async def _serve(self, connection: socket.socket) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await self._answer(task, await _head(connection))
                await asyncio.get_running_loop().sock_sendall(connection, answer)
        except (TimeoutError, OSError, _NoRequestError) as error:
            logger.debug("scrape broken off", extra={"error": type(error).__name__})
        finally:
            self._holding.pop(task, None)

    async def _answer(self, task: asyncio.Task[None], head: bytes) -> bytes:
        with suppress(ValueError):
            method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
            if method not in {b"GET", b"HEAD"}:
                return _response("405 Method Not Allowed", b"only GET and HEAD\n", "Allow: GET, HEAD\r\n")
            if target.partition(b"?")[0] not in {b"/metrics", b"/"}:
                return _response("404 Not Found", b"metrics are at /metrics\n")
            answer = _response("200 OK", await self._text(task), kind=CONTENT_TYPE_LATEST)
            return answer if method == b"GET" else answer[: answer.index(b"\r\n\r\n") + 4]
        return _response("400 Bad Request", b"no HTTP request\n")

    async def _text(self, task: asyncio.Task[None]) -> bytes:
        """Return the metrics, and leave the connection's place to others meanwhile."""
        self._holding.pop(task, None)
        self._answering.add(task)
        try:
            text = await self._exposition.text()
        finally:
            self._answering.discard(task)
        self._hold(task)
        return text


def _close(connection: socket.socket, _: object) -> None:
    connection.close()


class _NoRequestError(Exception):
    """The head is too long, or has no end."""


async def _head(connection: socket.socket) -> bytes:
    """Return what came first, up to an empty line or more; raise _NoRequestError and OSError."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = await asyncio.get_running_loop().sock_recv(connection, _MAX_HEAD_BYTES)
        if not part or len(head) + len(part) > _MAX_HEAD_BYTES:
            raise _NoRequestError
        head += part
    return head


def _response(status: str, body: bytes, headers: str = "", kind: str = "text/plain; charset=utf-8") -> bytes:
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body
