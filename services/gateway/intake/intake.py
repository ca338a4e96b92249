"""Decides where a request's bytes become tokens, and in which order."""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from common.errors import DeadlineError, InvalidRequestError, OverloadedError
from common.fair_bound import FairBound
from services.gateway.intake.accepted import AcceptedRequest
from services.gateway.intake.limits import seconds_for
from services.gateway.intake.places import Places
from services.gateway.intake.process import ForkServerProcess, ProcessDiedError
from services.gateway.intake.work import GenerationKind, Job, Result, Rules, TokenizationKind, do_if_quick
from services.gateway.metrics import GatewayMetrics
from services.gateway.text_model import TextModel

QUICK_BYTES = 8 * 1024
"""Up to this length the worst body takes a few milliseconds, and is read where it is."""
_WAIT_PER_QUICK_BYTE = 1 / 1024
"""Seconds: behind hundreds of bodies of that length, one of an eighth of it still comes soon."""
SHORT_BYTES = 64 * 1024
"""Up to this length a body takes a moment, unless it is wicked."""
_MAX_LONG_BODIES = 4
"""Of the largest size, or as many bytes, that may wait or be read at the same time."""
_TURN_SECONDS, _TURN_SECONDS_PER_BYTE = 0.1, 4 / 2**20
"""A short request's first turn."""
_WAIT_PER_SECOND = 4
"""How much later the place in the queue is for a second that a request may still take, or has had."""

logger = logging.getLogger(__name__)


class Intake:
    """Reads requests: small ones in a thread, the smallest first, and all others in processes of low priority.

    Short ones and long ones have processes of their own. How long a short one takes is not known before, for it may
    have a grammar. So it has a turn, after which it goes behind the others that wait, and is read anew in a turn twice
    as long: half of the work is lost at worst, and nothing is held meanwhile.

    A context manager that ends all processes.
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
        """Take how many processes of either kind may run, and the length of the largest body."""
        self._model = model
        self._rules = rules
        self._server = server
        self._metrics = metrics
        self._long_bytes = FairBound(_MAX_LONG_BODIES * max_bytes)
        self._thread = ThreadPoolExecutor(1, "intake")
        self._quick = Places(1)
        self._short, self._long = Places(processes), Places(processes)

    async def __aenter__(self) -> Self:
        self._starting = asyncio.create_task(asyncio.to_thread(self._server.start))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self._starting, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._server.stop()

    async def accept(
        self,
        kind: GenerationKind,
        body: bytes,
        request_id: str,
        deadline: float,
        streams: "asyncio.Future[bool]",
        client: int,
    ) -> AcceptedRequest:
        """Return what is left of a request once its prompts are tokens; `deadline` is on the monotonic clock.

        `streams` gets whether it asks for a stream, as soon as that is known. Raises the StructKVError that it comes
        to, OverloadedError if too much waits already, and DeadlineError. Cancelling it ends the work.
        """
        result = await self._take(Job(kind, body, request_id, self._rules), deadline, streams, client)
        assert isinstance(result, AcceptedRequest)
        if not streams.done():
            streams.set_result(result.stream is not None)
        return result

    async def answer(self, kind: TokenizationKind, body: bytes, request_id: str, deadline: float, client: int) -> bytes:
        """Return the JSON that answers a request which asks no worker. Raises as `accept` does."""
        streams = asyncio.get_running_loop().create_future()
        result = await self._take(Job(kind, body, request_id, self._rules), deadline, streams, client)
        assert isinstance(result, bytes)
        return result

    async def _take(self, job: Job, deadline: float, streams: "asyncio.Future[bool]", client: int) -> Result:
        try:
            async with asyncio.timeout_at(deadline):
                if len(job.body) <= QUICK_BYTES:
                    result = await self._in_thread(job)
                    if result is not None:
                        return result
                with self._reading(len(job.body), client):
                    return await self._in_process(job, streams)
        except TimeoutError:
            raise DeadlineError("the request was not read within its time") from None

    async def _in_thread(self, job: Job) -> Result | None:
        async with self._quick.taken(time.monotonic() + len(job.body) * _WAIT_PER_QUICK_BYTE):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, do_if_quick, job, self._model)

    async def _in_process(self, job: Job, streams: "asyncio.Future[bool]") -> Result:
        began, size = time.monotonic(), len(job.body)
        seconds = _TURN_SECONDS + size * _TURN_SECONDS_PER_BYTE
        rank = began + seconds * _WAIT_PER_SECOND
        try:
            if size > SHORT_BYTES:
                async with self._long.taken(rank):
                    return await self._run(job, streams)
            return await self._by_turns(job, streams, rank, seconds)
        except ProcessDiedError as error:
            raise self._died(error, size) from None
        except asyncio.CancelledError:
            self._metrics.intake_broken_off.labels("left").inc()
            raise
        finally:
            self._metrics.intake_seconds.observe(time.monotonic() - began)

    @contextmanager
    def _reading(self, size: int, client: int) -> Iterator[None]:
        """Count a request as one that is read; raise OverloadedError for a long one if there are too many of them.

        Short ones are bounded by their number, `max_requests`.
        """
        long_bytes = size if size > SHORT_BYTES else 0
        if long_bytes and self._long_bytes.excess(long_bytes, client):
            total, own = self._long_bytes.total, self._long_bytes.held(client)
            raise OverloadedError(f"{total} bytes of long requests wait to be read, {own} of them yours")
        self._long_bytes.take(long_bytes, client)
        try:
            with self._metrics.intake_requests.track_inprogress():
                yield
        finally:
            self._long_bytes.give_back(long_bytes, client)

    async def _by_turns(self, job: Job, streams: "asyncio.Future[bool]", rank: float, seconds: float) -> Result:
        while True:
            async with self._short.taken(rank):
                running = asyncio.ensure_future(self._run(job, streams))
                try:
                    if await self._has_ended(running, seconds):
                        return running.result()
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
            self._metrics.intake_broken_off.labels("turn").inc()
            rank = time.monotonic() + seconds * _WAIT_PER_SECOND
            seconds *= 2

    async def _has_ended(self, running: "asyncio.Future[Result]", seconds: float) -> bool:
        """Wait for an end, but no longer than a turn if somebody else waits who comes first by then."""
        while not running.done():
            await asyncio.wait({running}, timeout=seconds)
            if self._short.is_wanted_before(time.monotonic() + seconds * _WAIT_PER_SECOND):
                break
        return running.done()

    async def _run(self, job: Job, streams: "asyncio.Future[bool]") -> Result:
        """Have a job done by a process; cancelling ends it."""
        process = await self._server.open()
        try:
            return await process.do(job, streams)
        finally:
            process.close()

    def _died(self, error: ProcessDiedError, size: int) -> Exception:
        """Return what a request gets whose process has died."""
        if error.signum == signal.SIGXCPU:
            self._metrics.intake_broken_off.labels("time").inc()
            return InvalidRequestError(f"the request takes more than {seconds_for(size)} seconds to be read")
        self._metrics.intake_broken_off.labels("died").inc()
        if error.signum == signal.SIGABRT:  # as llguidance ends where its memory does, which is bounded
            return InvalidRequestError("the request takes too much memory to be read")
        logger.error("a process that read a request has died", extra={"signal": error.signum, "body_bytes": size})
        return error
