"""Who has KV memory: answers wait for it, hold it, and give way to each other.

Everyone's order is their `Rank`. Who does not fit is passed over by those of the next _MOST_TRIED who do; after
_PATIENCE_SECONDS, what came later gives way to it. So no request keeps all others waiting, and none waits for ever.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from heapq import nsmallest
from itertools import chain
from operator import attrgetter

from common.errors import UnavailableError
from common.token_bound import TokenBound
from services.decode.group import Group, Member, number
from services.decode.pool import KVPool
from services.decode.queue import Queue

_PATIENCE_SECONDS = 10.0
_MOST_TRIED = 64
"""So many of those without memory are looked at in one go: thousands may wait."""

logger = logging.getLogger(__name__)


class Admission:
    """The members in the pool, those swapped out, and the requests that wait."""

    def __init__(self, pool: KVPool, max_waiting_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._bound = TokenBound("max_waiting_tokens", max_waiting_tokens)
        self._clock = clock
        self.waiting = Queue()
        self.resident: list[Member] = []
        self.swapped: list[Member] = []

    def enter(self, group: Group) -> None:
        """Give a request memory, or have it wait; raise OverloadedError if too many tokens do."""
        self._bound.enter(group.prompt_tokens, group.client)
        self.waiting.add(group)
        self.admit(may_swap_out=False)

    def withdraw(self, group: Group) -> None:
        """Take a request that waits out of the queue."""
        self.waiting.remove(group)
        self._bound.leave(group.prompt_tokens, group.client)

    def free(self, member: Member) -> None:
        """Take a member's memory back, in the pool and out of it; it is no more."""
        if member in self.swapped:
            self.swapped.remove(member)
        if member in self.resident and member.kv is not None:
            self.resident.remove(member)
            self._pool.free(member.kv)
        if member in member.group.members:
            member.group.members.remove(member)

    def admit(self, *, may_swap_out: bool) -> None:
        """Give memory to those without, in their order; between two steps also what others have to give up for it.

        Where very many are without, it does so between two steps only: once for all that come and go meanwhile.
        """
        if not may_swap_out and len(self.waiting) + len(self.swapped) > _MOST_TRIED:
            return
        waiting = self.waiting.next(_MOST_TRIED)
        without = [*(group.members[0] for group in waiting), *self.swapped]
        self._note_overdue(waiting)
        if may_swap_out or len(without) > 1:  # else nobody's place matters
            number({*waiting, *(member.group for member in [*self.resident, *self.swapped])})
            without = nsmallest(_MOST_TRIED, without, key=attrgetter("rank"))
        too_many: dict[int, int] = {}
        for member in without:
            needed, client = self._pool.blocks_needed(_needed(member)), member.group.client
            # Those of the same client that come later have fewer behind them who would give way.
            if may_swap_out and needed < too_many.get(client, needed + 1) and not self._make_way(member, needed):
                too_many[client] = needed
            if needed <= self._pool.allocator.num_free:
                self._bring_in(member)

    def make_room(self, member: Member) -> bool:
        """Have the last in order give way until a member can append; return whether it is still in the pool."""
        assert member.sequence is not None
        needed = self._pool.blocks_to_append(member.sequence.kv, member.sequence.tokens_to_append)
        while member in self.resident and needed > self._pool.allocator.num_free:
            self._give_up(max(filter(_may_move, self.resident), key=attrgetter("rank")))
        return member in self.resident

    def _note_overdue(self, waiting: list[Group]) -> None:
        """Note which requests of which nothing is in the pool have waited too long."""
        now = self._clock()
        for group in [*waiting, *(member.group for member in self.swapped if member.group.members[0] is member)]:
            if now - group.idle_since > _PATIENCE_SECONDS:
                group.is_overdue = True

    def _make_way(self, member: Member, needed: int) -> bool:
        """Have those give way who must, the last first, if it is enough together; tell whether it is."""
        allocator = self._pool.allocator
        if needed <= (free := allocator.num_free):
            return True
        yielding = sorted((m for m in self.resident if _may_move(m) and m.yields_to(member)), key=attrgetter("rank"))
        leaving, given_back = list[Member](), Counter[int]()
        while free < needed and yielding:
            leaving.append(yielding.pop())
            free += allocator.num_freed(_blocks(leaving[-1]), given_back)
        if free < needed:
            return False
        for last in leaving:
            self._give_up(last)
        return True

    def _bring_in(self, member: Member) -> None:
        if member.swapped is None:
            self._grant(member.group)
            return
        self.swapped.remove(member)
        self.resident.append(member)
        member.group.members.sort(key=lambda sibling: sibling not in self.resident)
        assert member.kv is not None
        try:
            self._pool.swap_in(member.kv, member.swapped)
        except (MemoryError, RuntimeError) as error:  # torch's own error for memory is the latter
            self._lose(member, error)
        else:
            member.swapped = None

    def _grant(self, group: Group) -> None:
        """Give a request's first answer its memory; the others begin as copies of it, and get theirs then."""
        self.withdraw(group)
        first = group.members[0]
        first.kv = self._pool.allocate(first.tokens)
        self.resident.append(first)
        if not group.granted.done():  # else it was cancelled, and is about to leave
            group.granted.set_result(None)

    def _give_up(self, member: Member) -> None:
        """Take a member out of the pool: what it has written goes to host memory."""
        self.resident.remove(member)
        assert member.kv is not None
        extra = {"num_running": len(self.resident), "priority": member.group.priority}
        member.group.context.run(logger.info, "sequence swapped out", extra=extra)
        try:
            member.swapped = self._pool.swap_out(member.kv)
        except (MemoryError, RuntimeError) as error:
            self.resident.append(member)
            self._lose(member, error)
            return
        self.swapped.append(member)
        if member.group.members[0] is member:
            member.group.idle_since = self._clock()

    def _lose(self, member: Member, error: Exception) -> None:
        """End a request for which there is no host memory: another worker may have some."""
        logger.error("no host memory for what is swapped", extra={"error": str(error)})
        failure = UnavailableError("the worker has no host memory for what gives way")
        member.group.events.put_nowait(failure)
        self.free(member)


def _needed(member: Member) -> list[int]:
    """Return the slots that a member without memory has to get, by layer."""
    if member.swapped is None:
        return member.tokens
    assert member.sequence is not None
    more = max(1, member.sequence.tokens_to_append)
    return [keys.shape[0] + more for keys, _ in member.swapped.layers]


def _may_move(member: Member) -> bool:
    """Tell whether a member can be taken out of the pool: not while a skeleton is being loaded into it."""
    return member.sequence is not None


def _blocks(member: Member) -> list[int]:
    assert member.kv is not None
    return list(chain.from_iterable(table.blocks for table in member.kv.tables))
