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
from services.gateway.answer import Answer
from services.gateway.errors import error_body
from services.gateway.recorder import recorder
from services.gateway.shapes import Envelope

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

    def __init__(self, answer: Answer, envelope: Envelope, *, include_usage: bool, deadline: float) -> None:
        super().__init__(
            frames(answer, envelope, include_usage=include_usage), media_type="text/event-stream", headers=_HEADERS
        )
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


async def frames(answer: Answer, envelope: Envelope, *, include_usage: bool) -> AsyncIterator[str]:
    """Yield an answer's server-sent events. The status line is gone, so an error is an event too."""
    try:
        async for chunk in _chunks(answer, envelope, include_usage=include_usage):
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


async def _chunks(answer: Answer, envelope: Envelope, *, include_usage: bool) -> AsyncIterator[dict[str, object]]:
    no_usage = {"usage": None} if include_usage else {}
    for choice in envelope.shape.opening():
        yield envelope.chunk(choice, **no_usage)
    async for text in answer.pieces():
        yield envelope.chunk(envelope.shape.delta(text), **no_usage)
    closing = envelope.shape.closing(answer.finish_reason)
    if include_usage:
        yield envelope.chunk(closing, **no_usage)
        yield envelope.chunk(None, usage=envelope.usage(answer), **envelope.stats(answer))
    else:
        yield envelope.chunk(closing, **envelope.stats(answer))


def _frame(content: dict[str, object]) -> str:
    # Escaped to ASCII: some clients break lines at U+2028 and the like, which JSON would let through.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"
