"""Asks decode workers for an answer."""

from collections.abc import AsyncIterator

from common.pb import decode_pb2
from services.gateway.failover import DecodeStream
from services.gateway.routing import WorkerPool


class DecodeCall:
    """A running answer whose first event is here. Whoever has it closes it."""

    def __init__(self, stream: DecodeStream, first: decode_pb2.GenerateEvent) -> None:
        self._stream = stream
        self.first = first

    async def events(self) -> AsyncIterator[decode_pb2.GenerateEvent]:
        """Yield the events, the first included, up to the one that finishes the answer."""
        event = self.first
        yield event
        while event.finish_reason == decode_pb2.FINISH_REASON_UNSPECIFIED:
            event = await self._stream.read()
            yield event

    def close(self) -> None:
        """Cancel the call if it still runs, which frees the worker's memory. May be called again."""
        self._stream.close()


class DecodeClient:
    """Opens calls on the least busy decode worker, each with the prefill workers it may ask."""

    def __init__(self, decode: WorkerPool, prefill: WorkerPool, *, worker_wait_seconds: float) -> None:
        """Take the workers; a request waits for `worker_wait_seconds` if none of a kind is serving."""
        self._decode = decode
        self._prefill = prefill
        self._worker_wait_seconds = worker_wait_seconds

    async def open(self, request: decode_pb2.GenerateRequest, deadline: float) -> DecodeCall:
        """Return a call with its first event; `deadline` is on the monotonic clock.

        A worker that is gone or full hands the request to the next, and one that fails later, the answer: with the
        tokens so far in `answers`, whose continuation is what it would have been, since a token is a
        function of the ones before it, the seed and its step. Raises OverloadedError if all are full,
        UnavailableError if none serves or too many failed, and DeadlineError.
        """
        stream = DecodeStream(self._decode, self._prefill, request, deadline)
        try:
            return DecodeCall(stream, await stream.start(self._worker_wait_seconds))
        except BaseException:
            stream.close()
            raise
