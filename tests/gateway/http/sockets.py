"""Clients that write what they like to a gateway's socket."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, listening

BODY = json.dumps({"model": DEFAULT_MODEL, "prompt": "Once"}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"


class Client:
    """A connection that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @property
    def port(self) -> int:
        """The server's."""
        port: int = self._writer.get_extra_info("peername")[1]
        return port

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def status(self) -> int:
        """Read one answer; return its status."""
        return int((await self.head()).split()[1])

    async def head(self, *, with_body: bool = True) -> bytes:
        """Read one answer; return its head."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.body = await self._reader.readexactly(int(length.split(b":")[1])) if with_body else b""
        return head

    async def is_closed_while_sending(self, byte: bytes = b"", seconds: float = 2.0) -> bool:
        """Send a byte now and then; tell whether the server closes the connection meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                await self.send(byte)
                async with asyncio.timeout(0.05):
                    if not await self._reader.read(1000):
                        return True
            except TimeoutError:
                continue
            except ConnectionError:
                return True
        return False

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        async with asyncio.timeout(10):
            return await self._reader.read()

    def half_close(self) -> None:
        """Send the end, and go on reading."""
        self._writer.write_eof()

    def read_nothing(self) -> None:
        """Leave everything in the kernel's hands, of which little fits there."""
        self._writer.transport.pause_reading()
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def close(self) -> None:
        self._writer.close()


Connect = Callable[[], AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def reachable(gateway: Gateway, **settings: object) -> AsyncIterator[Connect]:
    async with listening(gateway.app, **settings) as url:

        @asynccontextmanager
        async def connect() -> AsyncIterator[Client]:
            client = Client(*await asyncio.open_connection("127.0.0.1", httpx.URL(url).port))
            try:
                yield client
            finally:
                client.close()

        yield connect


def head(*lines: str) -> bytes:
    """Return the head of a request for a completion."""
    return "\r\n".join(["POST /v1/completions HTTP/1.1", "Host: gateway", *lines, "", ""]).encode()


def asking(body: bytes = BODY, *lines: str) -> bytes:
    """Return a whole request for a completion."""
    return head(f"Content-Length: {len(body)}", *lines) + body
