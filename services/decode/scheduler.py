"""Continuous batching: requests join and leave the running batch at any step.

All bookkeeping happens on the event loop; only a step's computation runs in the one compute thread. So there
are no locks, and a request that is cancelled has its memory back after the step that is running.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from operator import attrgetter

from common.errors import InvalidRequestError, OverloadedError, StructKVError, WorkerFailedError
from common.fair_bound import FairBound
from services.decode.admission import Admission
from services.decode.engine import DecodeEngine, Drawn, Sequence
from services.decode.group import Finish, Group, Member, Token
from services.decode.isolation import step_apart, try_out
from services.decode.pool import SequenceKV
from services.decode.step_cost import StepCost
from services.decode.turns import Turns

_STUCK_SECONDS = 60.0
"""A step is one token for each sequence, or thousands of tokens that are replayed: seconds on the slowest machine."""

_MOMENT = 0.25
"""Of a step, that it waits for grammars before it begins without those who are not done."""
_LEAST_MOMENT = 0.005


class DecodeScheduler:
    """Owns the KV memory and the running batch."""

    def __init__(
        self,
        engine: DecodeEngine,
        *,
        max_running: int,
        max_waiting_tokens: int,
        max_requests: int,
        compute: Executor | None = None,
        step_cost: StepCost | None = None,
        on_step: Callable[[float, int], None] = lambda *_: None,
    ) -> None:
        """Take the engine and the bounds; `compute` is the worker's one compute thread, by default a new one.

        With a `step_cost`, further answers of a request take turns where they make the steps of others too long.
        `on_step` is told each step's seconds and its number of sequences.
        """
        self._engine = engine
        self._pool = engine.pool
        self._max_running = max_running
        self._admission = Admission(engine.pool, max_waiting_tokens)
        self._places = FairBound(max_requests)
        self._groups: list[Group] = []  # that have memory
        self._arrivals = count()
        self._turns = Turns(max_running, step_cost)
        self._in_step: list[Member] = []
        self._step_started = self._step_seconds = 0.0
        self._following: dict[Member, asyncio.Task[None]] = {}
        self._departed: list[Member] = []
        self._failure: WorkerFailedError | None = None
        self._changed = asyncio.Event()
        self._on_step = on_step
        self._compute = compute or ThreadPoolExecutor(1, thread_name_prefix="decode")

    @asynccontextmanager
    async def reserve(
        self, tokens: list[list[int]], prompt_tokens: int, priority: int = 0, client: int = 0
    ) -> AsyncIterator[Group]:
        """Wait until there is room for a request's first answer: so many slots for each, by layer; free it at exit.

        Further answers get theirs in `spread`. Raises InvalidRequestError if there are more answers than sequences in
        the largest batch, and OverloadedError if too many tokens wait already, or there are too many requests.
        """
        if len(tokens) > self._max_running:
            raise InvalidRequestError(
                f"{len(tokens)} answers are asked for, this worker decodes at most max_running ({self._max_running}) "
                "sequences together; lower n",
                param="n",
            )
        if self._failure is not None:
            raise self._failure
        if self._places.excess(1, client):
            raise OverloadedError(
                f"{self._places.total} prompts are here already, {self._places.held(client)} of them yours (max_rpcs)"
            )
        granted = asyncio.get_running_loop().create_future()
        group = Group(prompt_tokens, priority, client, next(self._arrivals), granted)
        group.members = [Member(group, slots) for slots in tokens]
        self._admission.enter(group)
        self._places.take(1, client)
        self._changed.set()
        try:
            await group.granted
            self._groups.append(group)
            yield group
        finally:
            self._leave(group)

    @property
    def num_running(self) -> int:
        """Requests that have memory in the pool: their skeletons are being loaded, or they decode."""
        return len(self._groups) - self.num_swapped

    @property
    def num_waiting(self) -> int:
        """Requests that wait for memory."""
        return len(self._admission.waiting)

    @property
    def num_swapped(self) -> int:
        """Requests of which something is swapped out."""
        return len({id(member.group) for member in self._admission.swapped})

    @property
    def makes_progress(self) -> bool:
        """Whether no step has been running for so long that it must have got stuck."""
        return not self._in_step or time.monotonic() - self._step_started < _STUCK_SECONDS

    def spread(self, group: Group) -> list[SequenceKV]:
        """Have every answer of a request begin with the skeleton that its first one has now; return their tables.

        Those for which there is no room begin as swapped out, when it is their turn.
        """
        first, *others = group.members
        assert first.kv is not None
        begun = []
        for member in others:
            if self._pool.fits(member.tokens):
                member.kv = self._pool.allocate(member.tokens)
                begun.append(member)
        if begun:
            self._admission.resident += begun  # if sharing fails, their blocks are freed with them
            self._pool.share(first.kv, [member.kv for member in begun if member.kv is not None])
        if len(begun) < len(others):
            skeleton = self._pool.copy_out(first.kv)
            for member in others:
                if member.kv is None:
                    member.kv, member.swapped = self._pool.allocate([0] * len(member.tokens)), skeleton
                    self._admission.swapped.append(member)
        return group.tables

    async def generate(self, group: Group, sequences: Iterable[Sequence]) -> AsyncGenerator[Token, None]:
        """Run a request's sequences to their ends and yield their tokens as they come; `spread` gave the tables.

        A sequence's memory is free when it ends; that of those left, when the group's reservation ends.
        """
        num_left = len(group.members)
        for member, sequence in zip(group.members, sequences, strict=True):
            member.sequence = sequence
        self._changed.set()
        while num_left:
            event = await group.events.get()
            if isinstance(event, Exception):
                raise event
            num_left -= event.finish is not None
            yield event

    async def run(self) -> None:
        """Step as long as there are sequences; the worker's main loop. Raises WorkerFailedError when it must end."""
        while True:
            batch = await self._next_batch()
            self._in_step, self._step_started = batch, time.monotonic()
            try:
                failed = await asyncio.get_running_loop().run_in_executor(
                    self._compute, step_apart, self._engine, [_sequence(member) for member in batch]
                )
            except WorkerFailedError as error:
                self._fail_all(error)
                raise
            self._step_seconds = time.monotonic() - self._step_started
            self._on_step(self._step_seconds, len(batch))
            self._in_step = []
            self._deliver(batch, {id(sequence): error for sequence, error in failed})
            self._free_departed()

    @asynccontextmanager
    async def doubting(self) -> AsyncIterator[None]:
        """Find out, where something fails that nobody foresaw, whether it is the worker that does; it then ends."""
        try:
            yield
        except StructKVError:
            raise
        except Exception as error:
            try:
                await asyncio.get_running_loop().run_in_executor(self._compute, try_out, self._engine, error)
            except WorkerFailedError as failure:
                self._fail_all(failure)
            raise (self._failure or error) from error

    async def _next_batch(self) -> list[Member]:
        """Wait for work; return the members of the next step, each with room for its token."""
        while True:
            if self._failure is not None:
                raise self._failure
            await self._wait_for_grammars()
            self._admission.admit(may_swap_out=True)
            batch = self._take_turns()
            if batch:
                return batch
            if not self._admission.resident:
                self._pool.audit(())  # idle: whatever is not free now has leaked, and ends the worker
            self._changed.clear()
            await self._changed.wait()

    async def _wait_for_grammars(self) -> None:
        """Give the grammars a moment that the steps hardly notice, so that their sequences miss none of them."""
        if self._following:
            await asyncio.wait(self._following.values(), timeout=max(_LEAST_MOMENT, _MOMENT * self._step_seconds))

    def _take_turns(self) -> list[Member]:
        """Return those whose turn the next step is, each with a slot for what it appends; the last give way for it."""
        resident = self._admission.resident
        chosen = self._turns.choose(filter(self._is_ready, resident), len({id(member.group) for member in resident}))
        batch = set()
        # By rank, the order in which they give way: nobody gives way who is in the batch already.
        for member in sorted(chosen, key=attrgetter("rank")):
            if self._admission.make_room(member):
                self._engine.append_slots(_sequence(member))
                batch.add(member)
        in_turn = [member for member in chosen if member in batch]
        for member in in_turn:
            self._turns.taken(member)
        return in_turn

    def _is_ready(self, member: Member) -> bool:
        return member.sequence is not None and member not in self._following

    def _deliver(self, batch: list[Member], failed: dict[int, Exception]) -> None:
        for member in batch:
            if member in self._departed:
                continue
            sequence = _sequence(member)
            if (error := failed.get(id(sequence))) is not None:
                self._fail(member.group, error)
            elif sequence.drawn is not None:
                self._following[member] = asyncio.create_task(self._follow(member, sequence, sequence.drawn))
            else:
                self._pass_on(member, sequence)

    async def _follow(self, member: Member, sequence: Sequence, drawn: Drawn) -> None:
        """Have a sequence's grammar take what was drawn; until then it sits the steps out."""
        assert sequence.answer.matcher is not None
        try:
            token = await sequence.answer.matcher.take(drawn.token)
        except StructKVError as error:
            self._fail(member.group, error)
        else:
            sequence.settle(token, drawn.raw.of_row(drawn.row, token))
            self._pass_on(member, sequence)
        finally:
            del self._following[member]
            self._changed.set()

    def _pass_on(self, member: Member, sequence: Sequence) -> None:
        finish = _finish(sequence)
        token = Token(sequence.answer.number, sequence.last_token, sequence.last_logprobs, finish)
        member.group.events.put_nowait(token)
        if finish is not None:
            self._admission.free(member)

    def _fail(self, group: Group, error: Exception) -> None:
        """End a request; the error is for its caller, who reports it."""
        group.events.put_nowait(error)
        for member in list(group.members):
            self._let_go(member)

    def _fail_all(self, error: WorkerFailedError) -> None:
        """End everything, and take nothing any more."""
        self._failure = error
        for group in self._admission.waiting:
            if not group.granted.done():
                group.granted.set_exception(error)
        for group in self._groups:
            group.events.put_nowait(error)
        self._changed.set()

    def _leave(self, group: Group) -> None:
        """Take back what a request has, its place in the queue included."""
        if group in self._admission.waiting:
            self._admission.withdraw(group)
        if group in self._groups:
            self._groups.remove(group)
        self._places.give_back(1, group.client)
        for member in list(group.members):
            self._let_go(member)
        self._admission.admit(may_swap_out=False)
        self._changed.set()

    def _let_go(self, member: Member) -> None:
        """Take a member's memory back; what the step that is running still reads, after it."""
        if member in self._in_step:
            self._departed.append(member)
        else:
            self._admission.free(member)

    def _free_departed(self) -> None:
        for member in self._departed:
            self._admission.free(member)
        self._departed.clear()


def _sequence(member: Member) -> Sequence:
    """Return a member's sequence, which its skeleton's loading has made."""
    assert member.sequence is not None
    return member.sequence


def _finish(sequence: Sequence) -> Finish | None:
    """Tell whether the newest token is the last one."""
    sampling = sequence.answer.sampling
    if sequence.last_token in sampling.stop_token_ids:
        return Finish.STOP
    matcher = sequence.answer.matcher
    if matcher is not None and matcher.is_complete:
        return Finish.LENGTH if matcher.is_cut_short else Finish.GRAMMAR
    return Finish.LENGTH if sequence.answer.num_generated >= sampling.max_tokens else None
