"""Decides where a request's bytes become tokens, and in which order."""

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

from common.errors import DeadlineError, InvalidRequestError, OverloadedError
from services.gateway.intake.accepted import AcceptedRequest
from services.gateway.intake.limits import seconds_for
from services.gateway.intake.places import Places
from services.gateway.intake.process import ForkServerProcess, JobProcess, ProcessDiedError
from services.gateway.intake.work import GenerationKind, Job, Result, Rules, TokenizationKind, do_if_quick
from services.gateway.metrics import GatewayMetrics
from services.gateway.text_model import TextModel

QUICK_BYTES = 8 * 1024
"""Up to this length the worst body takes a few milliseconds, and is read where it is."""
_MAX_QUEUED_BODIES = 4
"""Bodies of the largest size, or as many bytes, that may be before a request in the queue."""
_UNITS = 64
"""Of the memory for processes: a body of the largest size takes all but the one that any process takes, and a quarter
is left for others beside it."""
_FIRST_TURN_SECONDS, _TURN_SECONDS = 0.05, 0.4
_SECONDS_PER_MEGABYTE = 16
_SECONDS_PER_SECOND = 4
"""How much later the place in the queue is for what a request has still to do, by its length, or has had."""

logger = logging.getLogger(__name__)


class Intake:
    """Reads requests: short ones in a thread, one after the other, and all others in processes of low priority.

    How long one takes cannot be known before. So processes take turns: who has had one goes behind those who have
    not, and a turn is twice as long as the one before. A context manager that ends all processes.
    """

    def __init__(
        self,
        model: TextModel,
        rules: Rules,
        server: ForkServerProcess,
        metrics: GatewayMetrics,
        *,
        processes: int,
        max_bytes: int,
    ) -> None:
        """Take how many processes run at a time, and the length of the largest body."""
        self._model = model
        self._rules = rules
        self._server = server
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, "intake")
        self._memory = Places(_UNITS + _UNITS // 4 + 1)
        self._turns = Places(processes)
        self._queued: dict[object, tuple[float, int]] = {}

    async def __aenter__(self) -> Self:
        self._starting = asyncio.create_task(asyncio.to_thread(self._server.start))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self._starting, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._server.stop()

    async def accept(
        self, kind: GenerationKind, body: bytes, request_id: str, deadline: float, streams: "asyncio.Future[bool]"
    ) -> AcceptedRequest:
        """Return what is left of a request once its prompts are tokens; `deadline` is on the monotonic clock.

        `streams` gets whether it asks for a stream, as soon as that is known. Raises the StructKVError that it comes
        to, OverloadedError if too much waits already, and DeadlineError. Cancelling it ends the work.
        """
        result = await self._take(Job(kind, body, request_id, self._rules), deadline, streams)
        assert isinstance(result, AcceptedRequest)
        if not streams.done():
            streams.set_result(result.stream is not None)
        return result

    async def answer(self, kind: TokenizationKind, body: bytes, request_id: str, deadline: float) -> bytes:
        """Return the JSON that answers a request which asks no worker. Raises as `accept` does."""
        streams = asyncio.get_running_loop().create_future()
        result = await self._take(Job(kind, body, request_id, self._rules), deadline, streams)
        assert isinstance(result, bytes)
        return result

    async def _take(self, job: Job, deadline: float, streams: "asyncio.Future[bool]") -> Result:
        try:
            async with asyncio.timeout_at(deadline):
                if len(job.body) <= QUICK_BYTES:
                    loop = asyncio.get_running_loop()
                    result = await loop.run_in_executor(self._thread, do_if_quick, job, self._model)
                    if result is not None:
                        return result
                return await self._in_process(job, streams)
        except TimeoutError:
            raise DeadlineError("the request was not read within its time") from None

    async def _in_process(self, job: Job, streams: "asyncio.Future[bool]") -> Result:
        began, size = time.monotonic(), len(job.body)
        rank = began + size / 2**20 * _SECONDS_PER_MEGABYTE
        with self._queued_as(rank, size):
            async with self._memory.taken(rank, 1 + size * _UNITS // self._max_bytes):
                process = await self._server.open()
                try:
                    return await self._by_turns(process, process.do(job, streams), rank)
                except ProcessDiedError as error:
                    raise self._died(error, size) from None
                finally:
                    process.close()
                    self._metrics.intake_seconds.observe(time.monotonic() - began)

    @contextmanager
    def _queued_as(self, rank: float, size: int) -> Iterator[None]:
        """Count a request as one that is read, unless too much is before it."""
        before = sum(other for its_rank, other in self._queued.values() if its_rank <= rank)
        if before > _MAX_QUEUED_BODIES * self._max_bytes:
            raise OverloadedError("too many long requests wait to be read")
        place = object()
        self._queued[place] = rank, size
        try:
            with self._metrics.intake_requests.track_inprogress():
                yield
        finally:
            del self._queued[place]

    async def _by_turns(self, process: JobProcess, doing: Coroutine[Any, Any, Result], rank: float) -> Result:
        work, seconds = asyncio.ensure_future(doing), _FIRST_TURN_SECONDS
        try:
            while True:
                async with self._turns.taken(rank):
                    process.resume()
                    await self._turn(work, seconds)
                    if work.done():
                        return work.result()
                    process.pause()
                rank = time.monotonic() + seconds * _SECONDS_PER_SECOND
                seconds = min(2 * seconds, _TURN_SECONDS)
        finally:
            if not work.done():
                self._metrics.intake_killed.labels("cancelled").inc()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _turn(self, work: "asyncio.Future[Result]", seconds: float) -> None:
        """Wait for the work's end; but no longer than its turn if somebody else waits for one."""
        while not work.done():
            await asyncio.wait({work}, timeout=seconds)
            if self._turns.contended:
                return

    def _died(self, error: ProcessDiedError, size: int) -> Exception:
        """Return what a request gets whose process has died."""
        if error.signum == signal.SIGXCPU:
            self._metrics.intake_killed.labels("time").inc()
            return InvalidRequestError(f"the request takes more than {seconds_for(size)} seconds to be read")
        self._metrics.intake_killed.labels("died").inc()
        logger.error("a process that read a request has died", extra={"signal": error.signum, "body_bytes": size})
        return error
