"""Continuous batching: requests join and leave the running batch at any step.

All bookkeeping happens on the event loop; only a step's computation runs in the one compute thread. So there
are no locks, and a request that is cancelled has its memory back after the step that is running.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from common.errors import OverloadedError
from services.decode.engine import DecodeEngine, Sequence
from services.decode.pool import SequenceKV, SwappedKV

logger = logging.getLogger(__name__)


class Finish(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


class Token(NamedTuple):
    """A chosen token, and why it is the last one if it is."""

    token_id: int
    finish: Finish | None


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that waits for KV memory: slots per layer, and where the tables go."""

    tokens_per_layer: list[int]
    granted: asyncio.Future[SequenceKV]


@dataclass(eq=False, slots=True)
class _Running:
    """A sequence in the batch, or swapped out of it, and the queue its tokens go to."""

    sequence: Sequence
    tokens: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    swapped: SwappedKV | None = None


class DecodeScheduler:
    """Owns the KV memory and the running batch."""

    def __init__(
        self, engine: DecodeEngine, *, max_running: int, max_waiting: int, compute: Executor | None = None
    ) -> None:
        """Take the engine and the bounds; `compute` is the worker's one compute thread, by default a new one."""
        self._engine = engine
        self._pool = engine.pool
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._granted: list[SequenceKV] = []
        self._batch: list[_Running] = []  # oldest first
        self._swapped: deque[_Running] = deque()
        self._in_step: list[_Running] = []
        self._departed: list[SequenceKV] = []
        self._changed = asyncio.Event()
        self._compute = compute or ThreadPoolExecutor(1, thread_name_prefix="decode")

    @asynccontextmanager
    async def reserve(self, tokens_per_layer: list[int]) -> AsyncIterator[SequenceKV]:
        """Wait, in order of arrival, until the pool has so many slots in each layer; give them back at exit."""
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(f"{len(self._waiting)} requests are waiting for KV memory already")
        waiting = _Waiting(tokens_per_layer, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._grant()
        try:
            yield await waiting.granted
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.granted.done() and not waiting.granted.cancelled():
                self._release(waiting.granted.result())

    async def generate(self, sequence: Sequence) -> AsyncGenerator[Token, None]:
        """Run a sequence, its skeleton loaded, to its end. Closing the iterator takes it out of the batch."""
        running = _Running(sequence)
        self._batch.append(running)
        self._changed.set()
        try:
            finish: Finish | None = None
            while finish is None:
                token = await running.tokens.get()
                if isinstance(token, Exception):
                    raise token
                finish = token.finish
                yield token
        finally:
            self._leave(running)

    async def run(self) -> None:
        """Step as long as there are sequences; the worker's main loop."""
        while True:
            batch = await self._next_batch()
            self._in_step = batch
            try:
                await asyncio.get_running_loop().run_in_executor(
                    self._compute, self._engine.step, [running.sequence for running in batch]
                )
            except Exception as error:  # handed to each sequence's own caller, who reports it
                self._fail(batch, error)
            else:
                self._deliver(batch)
            self._in_step = []
            self._free_departed()

    async def _next_batch(self) -> list[_Running]:
        """Wait for work; return the sequences of the next step, each with room for its token."""
        while True:
            self._resume()
            self._make_room()
            if self._batch:
                return list(self._batch)
            if not self._granted:
                self._pool.audit(())  # idle: whatever is not free now has leaked, and ends the worker
            self._changed.clear()
            await self._changed.wait()

    def _make_room(self) -> None:
        """Append what the step adds to every sequence, the oldest first; the youngest give way when blocks run out."""
        for running in list(self._batch):
            needed = self._pool.blocks_to_append(running.sequence.kv, running.sequence.tokens_to_append)
            while running in self._batch and needed > self._pool.allocator.num_free:
                self._preempt(self._batch[-1])
            if running in self._batch:
                self._engine.append_slots(running.sequence)

    def _preempt(self, running: _Running) -> None:
        logger.info("sequence swapped out", extra={"num_running": len(self._batch)})
        self._batch.remove(running)
        running.swapped = self._pool.swap_out(running.sequence.kv)
        self._swapped.append(running)

    def _resume(self) -> None:
        while self._swapped:
            running = self._swapped[0]
            assert running.swapped is not None
            tokens = [keys.shape[0] + 1 for keys, _ in running.swapped.layers]
            if not self._pool.fits(tokens):
                return
            self._pool.swap_in(running.sequence.kv, running.swapped)
            running.swapped = None
            self._batch.append(self._swapped.popleft())

    def _deliver(self, batch: list[_Running]) -> None:
        for running in batch:
            sequence = running.sequence
            finish = None
            if sequence.last_token in sequence.sampling.stop_token_ids:
                finish = Finish.STOP
            elif sequence.num_generated >= sequence.sampling.max_tokens:
                finish = Finish.LENGTH
            running.tokens.put_nowait(Token(sequence.last_token, finish))
            if finish is not None and running in self._batch:
                self._batch.remove(running)

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
        """Give memory to those who wait, in order; sequences that were swapped out come first."""
        while self._waiting and not self._swapped and len(self._granted) < self._max_running:
            if not self._pool.fits(self._waiting[0].tokens_per_layer):
                return
            waiting = self._waiting.popleft()
            self._granted.append(self._pool.allocate(waiting.tokens_per_layer))
            waiting.granted.set_result(self._granted[-1])

    def _release(self, kv: SequenceKV) -> None:
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
