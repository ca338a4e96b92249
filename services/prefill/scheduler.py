"""Shares one model among prompts, switching after any step: a chunk of tokens through one layer.

All bookkeeping happens on the event loop; only a step's computation runs in the one compute thread. So there are
no locks, and a prompt that is cancelled is gone after the step that is running.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from typing import NamedTuple

from common.errors import WorkerFailedError
from common.pb import prefill_pb2, skeleton_pb2
from common.skeleton import wire
from common.skeleton.spec import SkeletonSpec
from common.token_bound import TokenBound
from services.prefill.engine import PrefillEngine
from services.prefill.fair_share import FairShare
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.phases import Phases, Times

_OUTBOX_BYTES = 16 * 1024 * 1024
"""Encoded layers that may wait to be read before a prompt pauses: a short prompt's all fit, so that the prompts it
shares the model with get no turns while its reader keeps up; a long one's pile up no further than this."""
_FAIR_TURN = 17
"""One step in so many goes to the prompt that waits longest, whatever it is."""
_PEERS_TURN = 4
"""One step in so many goes to whose turn it is however urgent, so that the urgent take no more than three quarters."""
_PROGRESS_SECONDS = 1.0
"""Silence after which a reader is told that there is progress."""
_STUCK_SECONDS = 30.0
"""A step, one chunk through one layer, takes at most seconds on the slowest machine that serves."""

Events = list[prefill_pb2.PrefillEvent]


class _Done(NamedTuple):
    """What a step leaves for the reader, and the size of the keys and values in it."""

    events: Events
    num_bytes: int


logger = logging.getLogger(__name__)


class _Job:
    """One prompt: its generator, what it produced, and where its time went."""

    def __init__(
        self,
        engine: PrefillEngine,
        token_ids: list[int],
        skeleton: SkeletonSpec,
        priority: int,
        phases: Phases,
        client: int,
    ) -> None:
        self.num_tokens = len(token_ids)
        self.priority = priority
        self.client = client
        self.outbox: asyncio.Queue[_Done | Exception] = asyncio.Queue()
        self.outbox_bytes = 0
        self.cancelled = False
        self.finished = False
        self._steps = engine.run(token_ids, skeleton.selection)
        self._skeleton = skeleton
        self._encoded: wire.EncodedLayer | None = None  # whose messages are still to be written
        self._layers_left = engine.model.spec.num_layers + 1
        self._phases = phases
        self.runnable_since = phases.arrived
        self.context = copy_context()  # the request's, for what is logged of it elsewhere

    @property
    def work_left(self) -> int:
        """Estimate of the work left, in tokens times layers; a method that runs tokens again takes a little longer."""
        return self.num_tokens * max(1, self._layers_left)

    def compute(self) -> _Done:
        """Run one step and encode what a layer that it completes keeps; in the compute thread."""
        started = time.monotonic()
        output = next(self._steps)
        computed = time.monotonic()
        is_layer = isinstance(output, KeptLayer)
        self._layers_left -= is_layer
        done = self._encode(output)
        encoded = time.monotonic()
        selected = output.select_seconds if isinstance(output, KeptLayer) else 0.0
        times = Times(started - self.runnable_since, computed - started - selected, selected, encoded - computed)
        self._phases.step(times, ends_layer=is_layer)
        self.runnable_since = encoded
        if isinstance(output, PromptEnd):
            done.events.append(prefill_pb2.PrefillEvent(result=self._result(output)))
        return done

    def _encode(self, output: Output) -> _Done:
        """Encode a layer; return the messages of those that are on the host.

        A CPU's are at once. A GPU has the step and the encoding still before it, so it is busy while the messages of
        the layer before are written here; this one's are when the prompt's next step is queued, or its end.
        """
        earlier, self._encoded = self._encoded, None
        if isinstance(output, KeptLayer):
            self._encoded = wire.EncodedLayer(
                self._skeleton, output.layer, output.keys, output.values, output.positions
            )
        done = [] if earlier is None else [earlier]
        if self._encoded is not None and self._encoded.has_arrived:
            done.append(self._encoded)
            self._encoded = None
        return _Done([event for layer in done for event in _messages(layer)], sum(layer.num_bytes for layer in done))

    def _result(self, end: PromptEnd) -> skeleton_pb2.PrefillResult:
        self.finished = True
        result = wire.prompt_end(self._skeleton, end.hidden_state, end.pivot_layer)
        self._phases.pivot_layer, self._phases.finished = end.pivot_layer, True
        total = self._phases.total()
        result.queue_seconds, result.prefill_seconds = total.queue, total.prefill
        return result

    def deliver(self, output: _Done | Exception) -> None:
        """Put a step's output where its reader finds it."""
        if isinstance(output, Exception):
            self.outbox.put_nowait(output)
        elif output.events:  # most steps are in the middle of a layer
            self.outbox.put_nowait(output)
            self.outbox_bytes += output.num_bytes

    async def read(self, timeout_seconds: float) -> Events:
        """Wait for the next output; raise it if it is an error, and TimeoutError if none comes."""
        async with asyncio.timeout(timeout_seconds):
            output = await self.outbox.get()
        if isinstance(output, Exception):
            raise output
        self.outbox_bytes -= output.num_bytes
        return output.events

    def close(self) -> None:
        """Drop the generator and with it the prompt's tensors, those on their way to the host too."""
        self._steps.close()
        self._encoded = None


class PrefillScheduler:
    """Takes prompts in and runs their steps: the most urgent first, among equals those of the client that has had least
    time, and of its prompts the one with the least work left.
    """

    def __init__(self, engine: PrefillEngine, max_queued_tokens: int, compute: Executor | None = None) -> None:
        """Take the engine and its bound; `compute` is the worker's one compute thread, by default a new one."""
        self._engine = engine
        self._bound = TokenBound("max_queued_tokens", max_queued_tokens)
        self._share = FairShare()
        self._jobs: list[_Job] = []
        self._running: _Job | None = None
        self._step_started = 0.0
        self._turns = 0
        self._failure: WorkerFailedError | None = None
        self._changed = asyncio.Event()
        self._compute = compute or ThreadPoolExecutor(1, thread_name_prefix="prefill")

    @property
    def num_jobs(self) -> int:
        """Prompts taken in and not yet done."""
        return len(self._jobs)

    @property
    def num_tokens(self) -> int:
        """Tokens of those prompts."""
        return self._bound.tokens

    @property
    def makes_progress(self) -> bool:
        """Whether no step has been running for so long that it must have got stuck."""
        return self._running is None or time.monotonic() - self._step_started < _STUCK_SECONDS

    async def stream(
        self,
        token_ids: list[int],
        skeleton: SkeletonSpec,
        priority: int = 0,
        phases: Phases | None = None,
        client: int = 0,
    ) -> AsyncGenerator[prefill_pb2.PrefillEvent, None]:
        """Run a prompt and yield its layers as they are done. Closing the iterator cancels the prompt.

        While nothing is done, it says now and then that the worker makes progress; a stuck one says nothing. The
        prompt's times go into `phases`.
        """
        if self._failure is not None:
            raise self._failure
        job = _Job(self._engine, token_ids, skeleton, priority, phases or Phases(), client)
        self._bound.enter(job.num_tokens, client)
        self._jobs.append(job)
        self._changed.set()
        try:
            while True:
                try:
                    events = await job.read(_PROGRESS_SECONDS)
                except TimeoutError:
                    if self.makes_progress:
                        yield prefill_pb2.PrefillEvent(progress=prefill_pb2.Progress())
                    continue
                self._changed.set()
                for event in events:
                    yield event
                if events and events[-1].HasField("result"):
                    return
        finally:
            self._withdraw(job)

    async def run(self) -> None:
        """Run steps as long as there are prompts; the worker's main loop."""
        while True:
            job = await self._next_job()
            self._running, self._step_started = job, time.monotonic()
            try:
                output: _Done | Exception = await asyncio.get_running_loop().run_in_executor(self._compute, job.compute)
            except Exception as error:  # handed to the prompt's own caller, who reports it
                output, job.finished = error, True
            self._share.add(job.client, time.monotonic() - self._step_started)
            if isinstance(output, Exception):
                await self._doubt(output)
            self._running = None
            self._deliver(job, output)

    async def _doubt(self, error: Exception) -> None:
        """Find out whether it is the prompt's fault that it failed; raise WorkerFailedError if it is the worker's."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._compute, self._engine.try_out)
        except Exception as failure:
            logger.exception("this worker can no longer compute")
            ended = WorkerFailedError(f"the worker can no longer compute: {type(failure).__name__}")
            self._failure = ended
            for job in self._jobs:
                job.deliver(ended)
            raise ended from error

    async def _next_job(self) -> _Job:
        while True:
            runnable = [job for job in self._jobs if not job.finished and job.outbox_bytes < _OUTBOX_BYTES]
            if runnable:
                return self._choose(runnable)
            self._changed.clear()
            await self._changed.wait()

    def _choose(self, runnable: list[_Job]) -> _Job:
        """The most urgent; among equals, clients have equal shares of the time; of a client's prompts, the one with the
        least work left, so a short prompt waits for one step of a long one.

        Every so often it goes on however urgent others are, and whoever has waited longest, so nobody waits for ever.
        """
        self._turns += 1
        self._share.present({job.client for job in runnable})
        if self._turns % _FAIR_TURN == 0:
            return min(runnable, key=lambda job: job.runnable_since)
        by_urgency = self._turns % _PEERS_TURN != 0
        return min(
            runnable,
            key=lambda job: (job.priority if by_urgency else 0, self._share.used(job.client), job.work_left),
        )

    def _deliver(self, job: _Job, output: _Done | Exception) -> None:
        if job.cancelled:
            self._discard(job)
            return
        job.deliver(output)

    def _withdraw(self, job: _Job) -> None:
        job.cancelled = True
        if job is not self._running:  # else it is discarded as soon as its step is done
            self._discard(job)

    def _discard(self, job: _Job) -> None:
        if not job.finished:
            job.context.run(logger.info, "prompt cancelled", extra={"prompt_tokens": job.num_tokens})
        job.close()
        self._jobs.remove(job)
        self._bound.leave(job.num_tokens, job.client)


def _messages(layer: wire.EncodedLayer) -> Iterator[prefill_pb2.PrefillEvent]:
    for span in layer.spans():
        event = prefill_pb2.PrefillEvent()
        layer.write(event.chunk, *span)
        yield event
