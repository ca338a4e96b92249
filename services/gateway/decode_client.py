"""Asks decode workers for an answer: picks one, goes on to the next if it cannot, and lets go when told."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import cast

import grpc

from common.errors import DeadlineError, OverloadedError, StructKVError, UnavailableError, from_rpc
from common.pb import decode_pb2, decode_pb2_grpc
from services.gateway.routing import Worker, WorkerPool

logger = logging.getLogger(__name__)


class DecodeCall:
    """A running answer whose first event is here. Whoever has it closes it."""

    def __init__(self, stream: "_EventStream", first: decode_pb2.GenerateEvent, resources: ExitStack) -> None:
        self._stream = stream
        self._resources = resources
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
        self._resources.close()


class DecodeClient:
    """Opens calls on the least busy decode worker, each with the prefill workers it may ask."""

    def __init__(self, decode: WorkerPool, prefill: WorkerPool) -> None:
        self._decode = decode
        self._prefill = prefill

    async def open(self, request: decode_pb2.GenerateRequest, deadline: float) -> DecodeCall:
        """Return a call with its first event; fills in `prefill_targets`.

        Before the first event nothing is lost, so a worker that is gone or full hands the request to the next.
        `deadline` is on the monotonic clock. Raises the last worker's StructKVError if none takes it.
        """
        prefill = await self._prefill.candidates()
        request.prefill_targets[:] = [worker.address for worker in prefill]
        failure: StructKVError = UnavailableError("no decode worker is serving")
        for worker in await self._decode.candidates():
            try:
                return await self._start(worker, prefill[0], request, deadline)
            except (UnavailableError, OverloadedError) as error:
                logger.warning(
                    "decode worker refused",
                    extra={"request_id": request.request_id, "worker": worker.address, "error": str(error)},
                )
                failure = error
                if isinstance(error, UnavailableError):
                    self._decode.mark_unreachable(worker)
        raise failure

    async def _start(
        self, worker: Worker, prefill: Worker, request: decode_pb2.GenerateRequest, deadline: float
    ) -> DecodeCall:
        timeout_seconds = deadline - time.monotonic()
        if timeout_seconds <= 0:
            raise DeadlineError("the request's time is over")
        prompt_tokens = len(request.prompt_token_ids)
        with ExitStack() as resources:
            resources.enter_context(self._decode.lease(worker, prompt_tokens + request.sampling.max_tokens))
            call = decode_pb2_grpc.DecodeStub(worker.channel).Generate(request, timeout=timeout_seconds)
            resources.callback(call.cancel)
            stream = _EventStream(call)
            with self._prefill.lease(prefill, prompt_tokens):  # with the first token, prefill has done its part
                first = await stream.read()
            return DecodeCall(stream, first, resources.pop_all())


class _EventStream:
    """Reads a call's events, errors as our own."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]") -> None:
        self._call = call

    async def read(self) -> decode_pb2.GenerateEvent:
        """Return the next event; raise StructKVError where there is none."""
        try:
            event = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _as_structkv_error(error) from error
        if event is grpc.aio.EOF:
            raise StructKVError("the decode worker ended the answer without a reason")
        return cast(decode_pb2.GenerateEvent, event)


def _as_structkv_error(error: grpc.aio.AioRpcError) -> StructKVError:
    if error.code() is grpc.StatusCode.CANCELLED:  # not by us, we would not read on: the worker is going down
        return UnavailableError("the decode worker stopped")
    return from_rpc(error)
