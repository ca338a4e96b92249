"""The events of a prompt's answers, from one decode worker after the other: what a failing worker costs is a pause."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from contextlib import ExitStack
from typing import TypeVar, cast

import grpc

from common.errors import (
    DeadlineError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    PrefillFailedError,
    StructKVError,
    UnavailableError,
    from_rpc,
)
from common.pb import decode_pb2, decode_pb2_grpc
from services.gateway.recorder import recorder
from services.gateway.workers.routing import WorkerPool
from services.gateway.workers.worker import Lease, Worker

_MAX_FAILURES = 5
"""Workers that may fail one after the other without a single token: a request that kills its workers stops here."""
_PAUSE_SECONDS = 0.2

ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class DecodeStream:
    """The events of a prompt's answers, from one decode worker after the other.

    The request's `answers` are kept as they stand: what the next worker has to go on from.
    """

    def __init__(
        self, decode: WorkerPool, prefill: WorkerPool, request: decode_pb2.GenerateRequest, deadline: float
    ) -> None:
        self._decode = decode
        self._prefill = prefill
        self._request = request
        self._deadline = deadline
        self._recorder = recorder().call(request)
        self._failures = 0
        self._failed: list[Worker] = []
        self._worker: Worker | None = None
        self._lease: Lease | None = None
        self._reached = False
        self._call: grpc.aio.UnaryStreamCall[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent] | None = None
        self._resources = ExitStack()

    @property
    def finished(self) -> bool:
        """Whether nothing more is wanted of any answer."""
        return all(answer.finished for answer in self._request.answers)

    def finish(self, answer: int) -> None:
        """Want no more of one answer: what its worker still sends of it is dropped, and the next one is not asked."""
        self._request.answers[answer].finished = True
        self._note_success()

    async def start(self, worker_wait_seconds: float) -> decode_pb2.GenerateEvent:
        """Return the first event. That all are full is an answer; for one to serve at all there is a wait."""
        return await self._ask_until_answered(worker_wait_seconds, waits_for_room=False)

    async def read(self) -> decode_pb2.GenerateEvent:
        """Return the next event, if need be from another worker: who has half an answer rather waits for the rest."""
        try:
            return await self._next()
        except (InvalidRequestError, DeadlineError):
            raise
        except StructKVError as error:
            self._let_go(error, "answer")
        return await self._ask_until_answered(math.inf, waits_for_room=True)

    async def _ask_until_answered(
        self, worker_wait_seconds: float, *, waits_for_room: bool
    ) -> decode_pb2.GenerateEvent:
        """Ask all workers again and again; raise what there is to say when that no longer helps."""
        nobody_since = math.inf
        while True:
            try:
                return await self._ask_all()
            except NoWorkerError:
                nobody_since = min(nobody_since, time.monotonic())
                if time.monotonic() - nobody_since >= worker_wait_seconds:
                    raise
            except UnavailableError as error:
                nobody_since = math.inf
                await self._look_around(error)
            except OverloadedError as error:
                if not waits_for_room:
                    raise
                await asyncio.sleep(min(error.retry_after_seconds or 0, self._seconds_left()))
            await asyncio.sleep(min(_PAUSE_SECONDS, self._seconds_left()))

    async def _look_around(self, error: UnavailableError) -> None:
        """Find out who serves before all are asked again; raise the error if too much has failed."""
        if isinstance(error, PrefillFailedError):  # decode knows more of prefill than the last health check
            self._failures += 1
            await self._by_deadline(self._prefill.check_all())
        if self._failures >= _MAX_FAILURES:
            raise error

    async def _by_deadline(self, looking: Awaitable[ResultT]) -> ResultT:
        """Wait for what the pools find, but no longer than the request may take."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await looking
        except TimeoutError:
            raise DeadlineError("the request's time is over") from None

    def _seconds_left(self) -> float:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise DeadlineError("the request's time is over")
        return seconds

    def close(self) -> None:
        """End the call that is running."""
        self._resources.close()
        self._recorder.close()
        self._worker = self._call = None

    async def _ask_all(self) -> decode_pb2.GenerateEvent:
        """Return the next event from the first worker that gives one; raise the last one's error."""
        prefill = await self._by_deadline(self._prefill.candidates())
        self._request.prefill_targets[:] = [worker.address for worker in prefill]
        failure: StructKVError = UnavailableError("no decode worker is serving")
        for worker in await self._by_deadline(self._decode.candidates()):
            try:
                return await self._ask(worker, prefill[0])
            except (InvalidRequestError, DeadlineError):
                raise
            except StructKVError as error:
                self._let_go(error, "first token")
                failure = error
            if self._failures >= _MAX_FAILURES:
                break
        raise failure

    async def _ask(self, worker: Worker, prefill: Worker) -> decode_pb2.GenerateEvent:
        request, timeout_seconds = self._request, self._seconds_left()
        prompt_tokens = len(request.prompt_token_ids)
        self._worker = worker
        answer_tokens = request.sampling.max_tokens * len(request.answers)
        self._lease = self._resources.enter_context(self._decode.lease(worker, prompt_tokens + answer_tokens))
        self._reached = worker.channel.get_state() is grpc.ChannelConnectivity.READY
        metadata = self._recorder.attempt(worker.address)
        call = decode_pb2_grpc.DecodeStub(worker.channel).Generate(request, timeout=timeout_seconds, metadata=metadata)
        self._resources.callback(call.cancel)
        self._lease.on_given_up(call.cancel)
        self._call = call
        with self._prefill.lease(prefill, prompt_tokens):  # with the first token, prefill has done its part
            return await self._next()

    async def _next(self) -> decode_pb2.GenerateEvent:
        """Return the running call's next event of an answer that goes on; its tokens count as delivered."""
        while True:
            event = await self._read()
            if self._deliver(event):
                self._recorder.arrived(event)
                self._failures = 0
                self._blame()
                if event.finish_reason:
                    self._note_success()
                return event

    async def _read(self) -> decode_pb2.GenerateEvent:
        assert self._call is not None
        assert self._lease is not None
        try:
            event = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        except asyncio.CancelledError:
            if self._lease.given_up and not _is_cancelled():
                raise UnavailableError("the worker fails its health checks and says nothing") from None
            raise
        self._lease.heard = time.monotonic()
        if event is grpc.aio.EOF:
            raise StructKVError("the decode worker ended the answer without a reason")
        return cast(decode_pb2.GenerateEvent, event)

    def _deliver(self, event: decode_pb2.GenerateEvent) -> bool:
        """Keep account of an event's tokens; return whether they are still wanted."""
        if event.answer >= len(self._request.answers):
            raise StructKVError("the decode worker went on with an answer that nobody asked for")
        answer = self._request.answers[event.answer]
        if answer.finished:
            return False
        answer.token_ids.extend(event.token_ids)
        answer.finished = event.finish_reason != decode_pb2.FINISH_REASON_UNSPECIFIED
        return True

    def _let_go(self, error: StructKVError, phase: str) -> None:
        """End the call of a worker that failed, and count it if it is the worker that is to blame."""
        assert self._worker is not None
        logger.warning(
            "decode worker failed",
            extra={
                "request_id": self._request.request_id,
                "worker": self._worker.address,
                "phase": phase,
                "tokens": sum(len(answer.token_ids) for answer in self._request.answers),
                "error": str(error),
            },
        )
        self._recorder.failed_over(error, phase)
        if not isinstance(error, (OverloadedError, PrefillFailedError)):
            if self._reached:  # one that was dead before is not to blame on the request
                self._failures += 1
                self._failed.append(self._worker)
                self._worker.breaker.failed()
            if isinstance(error, UnavailableError):
                self._decode.mark_unreachable(self._worker)
        self.close()

    def _blame(self) -> None:
        """Have those rest that failed where the present worker does not: the request is not to blame."""
        for worker in self._failed:
            if worker is not self._worker:
                seconds = worker.breaker.blamed()
                self._recorder.blamed()
                extra = {"request_id": self._request.request_id, "worker": worker.address, "seconds": seconds}
                logger.warning("worker rests", extra=extra)
        self._failed.clear()

    def _note_success(self) -> None:
        if self._worker is not None and self.finished:
            self._worker.breaker.succeeded()


def _is_cancelled() -> bool:
    """Tell whether the running task is to end, and not only the call that it reads."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
