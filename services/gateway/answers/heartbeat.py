"""Keeps a stream from being silent for long: what stands between may take that for the end of it."""

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from starlette.types import Message, Send

_COMMENT: Message = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}
"""A line that begins with a colon is no event; readers of server-sent events skip it."""


class Heartbeat:
    """Sends a response's messages, and a comment whenever there has been none for a while; a context manager."""

    def __init__(self, send: Send, seconds: float, *, at_once: bool) -> None:
        """Take the longest silence, and whether the first comment follows the headers."""
        self._send = send
        self._seconds = seconds
        self._at_once = at_once
        self._sent = 0.0
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating

    async def send(self, message: Message) -> None:
        """Send a message of the response."""
        self._sent = time.monotonic()
        if self._beating is not None and not message.get("more_body", False):
            self._beating.cancel()  # nothing may come behind the last message
        await self._send(message)
        if message["type"] == "http.response.start":
            self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        if self._at_once:
            await self._send(_COMMENT)
        while True:
            silence = time.monotonic() - self._sent
            if silence >= self._seconds:
                self._sent = time.monotonic()
                await self._send(_COMMENT)
            else:
                await asyncio.sleep(self._seconds - silence)
