"""Asks decode workers for an answer."""

from common.pb import decode_pb2
from services.gateway.workers.failover import DecodeStream
from services.gateway.workers.routing import WorkerPool


class DecodeCall:
    """A running call for the answers to one prompt, whose first event is here. Whoever has it closes it.

    Attributes:
        skeleton: what decode tells of the prompt's skeleton.
    """

    def __init__(self, stream: DecodeStream, first: decode_pb2.GenerateEvent) -> None:
        self._stream = stream
        self._first: decode_pb2.GenerateEvent | None = first
        self.skeleton = first.skeleton

    async def read(self) -> decode_pb2.GenerateEvent | None:
        """Return the next event of an answer that goes on, the first included; None when all are finished."""
        first, self._first = self._first, None
        if first is not None:
            return first
        return None if self._stream.finished else await self._stream.read()

    def finish(self, answer: int) -> None:
        """Want no more of one answer; the others go on. With the last one the call ends, which frees memory."""
        self._stream.finish(answer)
        if self._stream.finished:
            self._stream.close()

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

        A worker that is gone or full hands the request to the next, and one that fails later, the answers: with the
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
