"""Continuous batching: requests join and leave the running batch at any step.

All bookkeeping happens on the event loop; only a step's computation runs in the one compute thread. So there
are no locks, and a request that is cancelled has its memory back after the step that is running.
"""

import asyncio
import logging
import time
from bisect import insort
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, count
from typing import NamedTuple

from common.errors import InvalidRequestError
from services.decode.engine import DecodeEngine, Sequence
from services.decode.logprobs import TokenLogprobs
from services.decode.pool import SequenceKV, SwappedKV
from services.decode.waiting import Waiting, WaitingQueue

_STUCK_SECONDS = 60.0
"""A step is one token for each sequence, or thousands of tokens that are replayed: seconds on the slowest machine."""

logger = logging.getLogger(__name__)


class Finish(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    GRAMMAR = "grammar"


class Token(NamedTuple):
    """A chosen token: of which answer, and why it is its last one if it is."""

    answer: int
    token_id: int
    logprobs: TokenLogprobs | None
    finish: Finish | None


@dataclass(eq=False, slots=True)
class _Running:
    """A sequence in the batch, or swapped out of it, and the queue its tokens go to: its request's."""

    sequence: Sequence
    arrival: int
    tokens: asyncio.Queue[Token | Exception]
    swapped: SwappedKV | None = None
    context: Context = field(default_factory=copy_context)  # the request's, for what is logged of it elsewhere

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in the batch: the last one gives way when memory runs out."""
        return self.sequence.priority, self.arrival


class DecodeScheduler:
    """Owns the KV memory and the running batch."""

    def __init__(
        self,
        engine: DecodeEngine,
        *,
        max_running: int,
        max_waiting_tokens: int,
        compute: Executor | None = None,
        on_step: Callable[[float, int], None] = lambda *_: None,
    ) -> None:
        """Take the engine and the bounds; `compute` is the worker's one compute thread, by default a new one.

        `on_step` is told each step's seconds and its number of sequences.
        """
        self._engine = engine
        self._pool = engine.pool
        self._max_running = max_running
        self._waiting = WaitingQueue(max_waiting_tokens)
        self._granted: list[SequenceKV] = []
        self._batch: list[_Running] = []  # by rank, as are those swapped out of it
        self._swapped: list[_Running] = []
        self._arrivals = count()
        self._in_step: list[_Running] = []
        self._step_started = 0.0
        self._departed: list[SequenceKV] = []
        self._changed = asyncio.Event()
        self._num_admitted = 0
        self._on_step = on_step
        self._compute = compute or ThreadPoolExecutor(1, thread_name_prefix="decode")

    @asynccontextmanager
    async def reserve(
        self, tokens: list[list[int]], prompt_tokens: int, priority: int = 0
    ) -> AsyncIterator[list[SequenceKV]]:
        """Wait until there is room for all answers of a request: so many slots for each, by layer; free it at exit.

        All at once, so that no answer waits for memory that its siblings hold. A lower priority goes first, then who
        came first. Raises InvalidRequestError if there are more answers than sequences in the largest batch, and
        OverloadedError if too many tokens wait already.
        """
        if len(tokens) > self._max_running:
            raise InvalidRequestError(
                f"{len(tokens)} answers are asked for, this worker decodes at most max_running ({self._max_running}) "
                "sequences together; lower n",
                param="n",
            )
        granted: asyncio.Future[list[SequenceKV]] = asyncio.get_running_loop().create_future()
        waiting = Waiting(tokens, prompt_tokens, priority, granted)
        first = self._waiting.first
        if (first is None or priority < first.priority) and self._has_room(waiting):
            self._give(waiting)
        else:
            self._waiting.push(waiting)
        try:
            tables = await granted
            self._num_admitted += 1
            try:
                yield tables
            finally:
                self._num_admitted -= 1
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._grant()  # it may have been what the others waited behind
                self._changed.set()
            elif granted.done() and not granted.cancelled():
                for kv in granted.result():
                    self._release(kv)

    @property
    def num_running(self) -> int:
        """Requests that have memory in the pool: their skeletons are being loaded, or they decode."""
        return self._num_admitted - self.num_swapped

    @property
    def num_waiting(self) -> int:
        """Requests that wait for memory."""
        return len(self._waiting)

    @property
    def num_swapped(self) -> int:
        """Requests of which something is swapped out."""
        return len({id(running.tokens) for running in self._swapped})

    @property
    def makes_progress(self) -> bool:
        """Whether no step has been running for so long that it must have got stuck."""
        return not self._in_step or time.monotonic() - self._step_started < _STUCK_SECONDS

    async def generate(self, sequences: Iterable[Sequence]) -> AsyncGenerator[Token, None]:
        """Run a request's sequences, their skeleton loaded, to their ends, and yield their tokens as they come.

        A sequence's memory is free when it ends. Closing the iterator takes those left out of the batch.
        """
        tokens: asyncio.Queue[Token | Exception] = asyncio.Queue()
        all_running = [_Running(sequence, next(self._arrivals), tokens) for sequence in sequences]
        for running in all_running:
            self._enter(self._batch, running)
        self._changed.set()
        try:
            num_left = len(all_running)
            while num_left:
                token = await tokens.get()
                if isinstance(token, Exception):
                    raise token
                num_left -= token.finish is not None
                yield token
        finally:
            for running in all_running:
                self._leave(running)

    async def run(self) -> None:
        """Step as long as there are sequences; the worker's main loop."""
        while True:
            batch = await self._next_batch()
            self._in_step, self._step_started = batch, time.monotonic()
            try:
                await asyncio.get_running_loop().run_in_executor(
                    self._compute, self._engine.step, [running.sequence for running in batch]
                )
            except Exception as error:  # handed to each sequence's own caller, who reports it
                self._fail(batch, error)
            else:
                self._on_step(time.monotonic() - self._step_started, len(batch))
                self._deliver(batch)
            self._in_step = []
            self._free_departed()

    async def _next_batch(self) -> list[_Running]:
        """Wait for work; return the sequences of the next step, each with room for its token."""
        while True:
            self._grant()
            self._resume()
            self._make_room()
            if self._batch:
                return list(self._batch)
            if not self._granted:
                self._pool.audit(())  # idle: whatever is not free now has leaked, and ends the worker
            self._changed.clear()
            await self._changed.wait()

    def _make_room(self) -> None:
        """Append what the step adds to every sequence, by rank; the last ones give way when blocks run out."""
        for running in list(self._batch):
            needed = self._pool.blocks_to_append(running.sequence.kv, running.sequence.tokens_to_append)
            while running in self._batch and needed > self._pool.allocator.num_free:
                self._preempt(self._batch[-1])
            if running in self._batch:
                self._engine.append_slots(running.sequence)

    def _preempt(self, running: _Running) -> None:
        running.context.run(
            logger.info,
            "sequence swapped out",
            extra={"num_running": len(self._batch), "priority": running.sequence.priority},
        )
        self._batch.remove(running)
        running.swapped = self._pool.swap_out(running.sequence.kv)
        self._enter(self._swapped, running)

    def _resume(self) -> None:
        while self._swapped and not self._comes_after_waiting(self._swapped[0]):
            running = self._swapped[0]
            assert running.swapped is not None
            more = max(1, running.sequence.tokens_to_append)
            tokens = [keys.shape[0] + more for keys, _ in running.swapped.layers]
            if not self._pool.fits(tokens):
                return
            self._pool.swap_in(running.sequence.kv, running.swapped)
            running.swapped = None
            self._enter(self._batch, self._swapped.pop(0))

    def _comes_after_waiting(self, running: _Running) -> bool:
        """Tell whether memory is kept for a request that waits, and that is more urgent."""
        first = self._waiting.first
        return first is not None and self._may_join(first) and first.priority < running.sequence.priority

    @staticmethod
    def _enter(order: list[_Running], running: _Running) -> None:
        insort(order, running, key=lambda entry: entry.rank)

    def _deliver(self, batch: list[_Running]) -> None:
        for running in batch:
            sequence, finish = running.sequence, _finish(running.sequence)
            matcher = sequence.answer.matcher
            if matcher is not None and matcher.failure is not None:
                self._fail([running], matcher.failure)
                continue
            token = Token(sequence.answer.number, sequence.last_token, sequence.last_logprobs, finish)
            running.tokens.put_nowait(token)
            if finish is not None and running in self._batch:
                self._batch.remove(running)
                self._departed.append(sequence.kv)

    def _fail(self, batch: list[_Running], error: Exception) -> None:
        for running in batch:
            running.tokens.put_nowait(error)
            if running in self._batch:
                self._batch.remove(running)

    def _leave(self, running: _Running) -> None:
        if running in self._batch:
            self._batch.remove(running)
        if running in self._swapped:
            self._swapped.remove(running)

    def _grant(self) -> None:
        """Give memory to those who wait, in their order; one who was cancelled may not have left the queue yet."""
        while (first := self._waiting.first) is not None and (first.granted.cancelled() or self._has_room(first)):
            self._waiting.remove(first)
            if not first.granted.cancelled():
                self._give(first)

    def _has_room(self, waiting: Waiting) -> bool:
        """Tell whether a request can have its memory now: what is swapped out and as urgent comes first."""
        outranked = bool(self._swapped) and self._swapped[0].sequence.priority <= waiting.priority
        return not outranked and self._may_join(waiting) and self._pool.fits(list(chain(*waiting.tokens)))

    def _may_join(self, waiting: Waiting) -> bool:
        return len(self._granted) + len(waiting.tokens) <= self._max_running

    def _give(self, waiting: Waiting) -> None:
        tables = [self._pool.allocate(tokens) for tokens in waiting.tokens]
        self._granted += tables
        waiting.granted.set_result(tables)

    def _release(self, kv: SequenceKV) -> None:
        if not any(granted is kv for granted in self._granted):
            return  # its answer has ended
        if any(running.sequence.kv is kv for running in self._in_step):
            self._departed.append(kv)  # the step that is running still reads it
        else:
            self._free(kv)

    def _free_departed(self) -> None:
        for kv in self._departed:
            self._free(kv)
        self._departed.clear()

    def _free(self, kv: SequenceKV) -> None:
        self._pool.free(kv)
        self._granted = [granted for granted in self._granted if granted is not kv]
        self._changed.set()
        self._grant()


def _finish(sequence: Sequence) -> Finish | None:
    """Tell whether the newest token is the last one."""
    sampling = sequence.answer.sampling
    if sequence.last_token in sampling.stop_token_ids:
        return Finish.STOP
    matcher = sequence.answer.matcher
    if matcher is not None and matcher.is_complete:
        return Finish.LENGTH if matcher.is_cut_short else Finish.GRAMMAR
    return Finish.LENGTH if sequence.answer.num_generated >= sampling.max_tokens else None
