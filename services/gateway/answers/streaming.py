"""Server-sent events: an answer's frames, and the response that carries them until they end or the client leaves."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from common.errors import StructKVError
from services.gateway.answers.answer import Answer
from services.gateway.answers.choice import Choice
from services.gateway.answers.envelope import Envelope
from services.gateway.answers.heartbeat import Heartbeat
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.http.errors import error_body
from services.gateway.recorder import recorder
from services.gateway.requests.schemas import StreamOptions

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_DONE = "data: [DONE]\n\n"
_LAST_WORDS_SECONDS = 5.0
"""At the deadline decode ends the stream, with an error to be sent; this ends one whose client no longer reads."""

_STATUS_SECONDS = 1.5
"""A refusal that takes longer is an event: clients and proxies are promised a status within two seconds."""

ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return what the work returns; cancel it and raise ClientDisconnect as soon as the client leaves.

    The request's body must have been read: what comes after it can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that has its first tokens.

    Attributes:
        envelope: the form it is told in.
        stream: what is streamed beside it; None for an answer in one piece.
    """

    answer: Answer
    envelope: Envelope
    stream: StreamOptions | None


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What a stream is besides its answer.

    Attributes:
        deadline: when the request's time is over (monotonic).
        heartbeat_seconds: the longest silence; 0 if there is no bound.
    """

    request_id: str
    deadline: float
    heartbeat_seconds: float


async def until_status(
    opening: "asyncio.Future[Begun]", streams: "asyncio.Future[bool]", heartbeat_seconds: float
) -> None:
    """Wait for an answer's first tokens; for a stream's, which `streams` tells, no longer than for its status."""
    due = time.monotonic() + _STATUS_SECONDS
    await asyncio.wait((opening, streams), return_when=asyncio.FIRST_COMPLETED)
    may_begin = heartbeat_seconds > 0 and streams.done() and streams.result()
    await asyncio.wait((opening,), timeout=max(0.0, due - time.monotonic()) if may_begin else None)


async def close(opening: "asyncio.Future[Begun]") -> None:
    """Close an answer, whether or not it has begun."""
    opening.cancel()
    (result,) = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(result, Begun):
        result.answer.close()


class EventStreamResponse(StreamingResponse):
    """Sends an answer's frames, and comments where there are none. However it ends, the answer is closed."""

    def __init__(self, opening: "asyncio.Future[Begun]", context: StreamContext) -> None:
        """Take the answer, which may not have begun yet."""
        super().__init__(frames(opening, context), media_type="text/event-stream", headers=_HEADERS)
        self._opening = opening
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the response."""
        try:
            async with asyncio.timeout_at(self._context.deadline + _LAST_WORDS_SECONDS):
                await unless_disconnected(receive, self._stream(send))
        except (ClientDisconnect, TimeoutError):
            # The status is sent, so there is nothing to answer: the server closes what is left of the connection.
            recorder().left()
            logger.info("client left", extra={"request_id": self._context.request_id})
        finally:
            await close(self._opening)

    async def _stream(self, send: Send) -> None:
        seconds = self._context.heartbeat_seconds
        if not seconds:
            await self.stream_response(send)
            return
        async with Heartbeat(send, seconds, at_once=not self._opening.done()) as heartbeat:
            await self.stream_response(heartbeat.send)


async def frames(opening: "asyncio.Future[Begun]", context: StreamContext) -> AsyncIterator[str]:
    """Yield an answer's server-sent events. The status line is gone, so an error is an event too."""
    try:
        begun = await opening
        async for chunk in _chunks(begun.answer, begun.envelope, begun.stream or StreamOptions()):
            yield _frame(chunk)
        yield _DONE
    except StructKVError as error:
        recorder().failed(error)
        logger.info("stream failed", extra={"request_id": context.request_id, "code": error.code.name})
        yield last_words(error)
    except Exception as error:
        recorder().failed(error)
        logger.exception("stream failed", extra={"request_id": context.request_id})
        yield last_words(error)


def last_words(error: Exception) -> str:
    """Return how a stream ends that cannot go on."""
    return _frame(error_body(error)) + _DONE


async def _chunks(answer: Answer, envelope: Envelope, options: StreamOptions) -> AsyncIterator[JsonObject]:
    shape, num_running = envelope.shape, len(answer.choices)
    for choice in answer.choices:
        if (opening := shape.opening(choice)) is not None:
            yield envelope.chunk(opening, **_usage_so_far(answer, envelope, choice, options))
    async for choice, piece in answer.pieces():
        usage = _usage_so_far(answer, envelope, choice, options)
        if not piece.is_empty:
            yield envelope.chunk(shape.delta(choice, piece), **usage)
        if choice.finish_reason is not None:
            num_running -= 1
            last = num_running == 0 and not options.include_usage
            yield envelope.chunk(shape.closing(choice), **usage, **(envelope.stats(answer) if last else {}))
    if options.include_usage:
        yield envelope.chunk(None, usage=envelope.usage(answer), **envelope.stats(answer))


def _usage_so_far(answer: Answer, envelope: Envelope, choice: Choice, options: StreamOptions) -> JsonObject:
    """Return the `usage` of a chunk with a choice: null where only the last chunk tells it, absent if none does."""
    if not options.include_usage:
        return {}
    return {"usage": envelope.usage_so_far(answer, choice) if options.continuous_usage_stats else None}


def _frame(content: dict[str, object]) -> str:
    # Escaped to ASCII: some clients break lines at U+2028 and the like, which JSON would let through.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"
