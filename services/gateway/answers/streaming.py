"""Server-sent events: an answer's frames, and the response that carries them until they end or the client leaves."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from common.errors import StructKVError
from services.gateway.answers.answer import Answer
from services.gateway.answers.choice import Choice
from services.gateway.answers.envelope import Envelope
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.http.errors import error_body
from services.gateway.recorder import recorder
from services.gateway.requests.schemas import StreamOptions

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_DONE = "data: [DONE]\n\n"
_LAST_WORDS_SECONDS = 5.0
"""At the deadline decode ends the stream, with an error to be sent; this ends one whose client no longer reads."""

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


class EventStreamResponse(StreamingResponse):
    """Sends an answer's frames. However it ends, the answer is closed."""

    def __init__(self, answer: Answer, envelope: Envelope, options: StreamOptions | None, deadline: float) -> None:
        events = frames(answer, envelope, options or StreamOptions())
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._answer = answer
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the response."""
        try:
            async with asyncio.timeout_at(self._deadline + _LAST_WORDS_SECONDS):
                await unless_disconnected(receive, self.stream_response(send))
        except (ClientDisconnect, TimeoutError):
            # The status is sent, so there is nothing to answer: the server closes what is left of the connection.
            recorder().left()
            logger.info("client left", extra={"request_id": self._answer.request_id})
        finally:
            self._answer.close()


async def frames(answer: Answer, envelope: Envelope, options: StreamOptions) -> AsyncIterator[str]:
    """Yield an answer's server-sent events. The status line is gone, so an error is an event too."""
    try:
        async for chunk in _chunks(answer, envelope, options):
            yield _frame(chunk)
        yield _DONE
    except StructKVError as error:
        recorder().failed(error)
        logger.info("stream failed", extra={"request_id": answer.request_id, "code": error.code.name})
        yield last_words(error)
    except Exception as error:
        recorder().failed(error)
        logger.exception("stream failed", extra={"request_id": answer.request_id})
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
