"""The gateway's end: soon no new requests, those under way go on for a while, and whoever asks is told."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.answers.streaming import last_words
from services.gateway.http.errors import DrainingError, answer_to

logger = logging.getLogger(__name__)


class Drain:
    """Whether new requests are taken, which are under way, and when the process may end.

    Until a load balancer has seen that the gateway is not ready any more, it still sends requests. So for the delay
    they are served, and their connections closed after them.
    """

    def __init__(
        self, grace_seconds: float, delay_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the most time for running requests, and the least until the end however little runs."""
        self._grace_seconds = max(grace_seconds, delay_seconds)
        self._delay_seconds = delay_seconds
        self._clock = clock
        self._began: float | None = None
        self._requests: set[asyncio.Task[object]] = set()
        self._broken_off = False

    @property
    def draining(self) -> bool:
        """Whether the process is about to end."""
        return self._began is not None

    @property
    def over(self) -> bool:
        """Whether nothing is left to wait for, or the time for it has passed."""
        seconds = self._seconds
        return seconds >= self._grace_seconds or (seconds >= self._delay_seconds and not self._requests)

    @property
    def _seconds(self) -> float:
        """Time since the end began; less than any bound before."""
        return -math.inf if self._began is None else self._clock() - self._began

    @property
    def broken_off(self) -> bool:
        """Whether what was still under way has been ended."""
        return self._broken_off

    def begin(self) -> None:
        """Refuse new requests once the delay is over. Safe to call from a signal handler, as is `hurry`."""
        self._began = self._clock()

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._grace_seconds = self._delay_seconds = 0.0

    def check(self) -> None:
        """Raise DrainingError if new requests are refused."""
        if self._seconds >= self._delay_seconds:
            raise DrainingError("this gateway is draining; ask again, elsewhere if there is another")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count the current task as a request under way for as long as the context lasts."""
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            yield
        finally:
            self._requests.discard(task)

    def break_off(self) -> None:
        """End what is still under way; its clients are told."""
        self._broken_off = True
        if self._requests:
            logger.warning("requests ended before they were done", extra={"num_requests": len(self._requests)})
        for task in self._requests:
            task.cancel()


class DrainMiddleware:
    """Counts requests until their answers are sent whole. While draining, answers close their connections."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started: Message | None = None

        async def send_and_close(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
                if self._drain.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        with self._drain.request():
            try:
                await self._app(scope, receive, send_and_close)
            except asyncio.CancelledError:
                if not self._drain.broken_off:
                    raise
                await _break_off(started, scope, receive, send)


async def _break_off(started: Message | None, scope: Scope, receive: Receive, send: Send) -> None:
    """End an answer that is not complete: an error where nothing was sent yet, an event in a stream."""
    error = DrainingError("this gateway has stopped before the answer was complete")
    if started is None:
        response = answer_to(error)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)
    elif Headers(raw=started["headers"]).get("content-type", "").startswith("text/event-stream"):
        body = last_words(error).encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})
