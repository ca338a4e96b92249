"""A request's answers as the scheduler has them: what each of them holds, and whose turn it is."""

import asyncio
import time
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from services.decode.engine import Sequence
from services.decode.logprobs import TokenLogprobs
from services.decode.pool import SequenceKV, SwappedKV


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


class Rank(NamedTuple):
    """A member's place in the order of turns: lower goes first, for memory as for the batch.

    What nobody of its request is ahead of, and has waited too long, is before all others. Then the more urgent; then
    everyone's first answer before anyone's second one, so that requests have equal shares; then who came first.
    """

    is_in_time: bool
    priority: int
    place: int
    arrival: int


@dataclass(eq=False, slots=True)
class Member:
    """One answer of a request.

    Attributes:
        group: its request.
        tokens: slots to set aside for it when it begins, by layer.
        kv: its block tables, once it has some.
        sequence: once its skeleton is loaded.
        swapped: its keys and values, while they are out of the pool.
        last_turn: the number of its last turn in a step; of two in the same step the first one's is lower.
    """

    group: "Group"
    tokens: list[int]
    kv: SequenceKV | None = None
    sequence: Sequence | None = None
    swapped: SwappedKV | None = None
    last_turn: int = 0

    @property
    def rank(self) -> Rank:
        """Its place in the order of turns."""
        group, place = self.group, self.group.members.index(self)
        if group.is_overdue and place == 0:
            return Rank(False, 0, 0, group.arrival)
        return Rank(True, group.priority, place, group.arrival)

    def yields_to(self, other: "Member") -> bool:
        """Tell whether it gives its memory up for one who has none.

        It does if it is more than the other's request has, or has come later than one who has waited too long.
        """
        mine, theirs = self.rank, other.rank
        return theirs < mine and (
            theirs.place < mine.place or (not theirs.is_in_time and theirs.arrival < mine.arrival)
        )


@dataclass(eq=False, slots=True)
class Group:
    """A request: its answers that have not ended, in the order in which they have their turns.

    Those in the pool are before those that are not.

    Attributes:
        prompt_tokens: what it counts for in the queue.
        priority: lower goes first.
        arrival: its place among all requests.
        granted: done once the first answer, and what else there was room for, has its tables.
        events: the tokens of all answers, or what ended them.
        idle_since: when it was last without any answer in the pool, monotonic.
        is_overdue: whether it has been so for too long once.
        context: the request's, for what is logged of it elsewhere.
    """

    prompt_tokens: int
    priority: int
    arrival: int
    granted: asyncio.Future[None]
    members: list[Member] = field(default_factory=list)
    events: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    idle_since: float = field(default_factory=time.monotonic)
    is_overdue: bool = False
    context: Context = field(default_factory=copy_context)

    @property
    def tables(self) -> list[SequenceKV]:
        """The block tables of the answers that have theirs."""
        return [member.kv for member in self.members if member.kv is not None]
