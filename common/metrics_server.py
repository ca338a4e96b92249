"""Serves a worker's metrics on the worker's own event loop, to few clients at a time and to none for long."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from common.exposition import Exposition

_MAX_CONNECTIONS = 16
_MAX_HEAD_BYTES = 8 * 1024
_SECONDS = 10.0
"""For a request to come and its answer to be taken."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving_metrics(registry: CollectorRegistry, host: str, port: int | None) -> AsyncIterator[None]:
    """Answer scrapes at `/metrics` for as long as the context lasts, if there is a port to do so."""
    if port is None:
        yield
        return
    scrapes = _Scrapes(Exposition(registry))
    server = await asyncio.start_server(scrapes.serve, host, port, limit=_MAX_HEAD_BYTES)
    async with server:
        yield
        scrapes.close()


class _Scrapes:
    """The connections. Beyond the bound the oldest makes room, so whoever holds many keeps nobody out."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        if len(self._open) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()  # its task finds out; cancelled, asyncio would log it as an error
        self._open[writer] = None
        try:
            async with asyncio.timeout(_SECONDS):
                writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            logger.debug("scrape broken off", extra={"error": type(error).__name__})
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def close(self) -> None:
        """End what runs."""
        for writer in self._open:
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        with suppress(ValueError):
            method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
            if method not in {b"GET", b"HEAD"}:
                return _response("405 Method Not Allowed", b"only GET and HEAD\n", "Allow: GET, HEAD\r\n")
            if target.partition(b"?")[0] not in {b"/metrics", b"/"}:
                return _response("404 Not Found", b"metrics are at /metrics\n")
            answer = _response("200 OK", await self._exposition.text(), kind=CONTENT_TYPE_LATEST)
            return answer if method == b"GET" else answer[: answer.index(b"\r\n\r\n") + 4]
        return _response("400 Bad Request", b"no HTTP request\n")


def _response(status: str, body: bytes, headers: str = "", kind: str = "text/plain; charset=utf-8") -> bytes:
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body
