"""A request's answers as the scheduler has them: what each of them holds, and whose turn it is."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection
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

    The more urgent is first; whoever has waited too long is as urgent as anybody. Then every client's first sequence
    before anyone's second one, so that clients have equal shares; then who has waited too long, and who came first.
    """

    priority: int
    share: int
    is_in_time: bool
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
        rank: its place in the order of turns, as `number` has found it.
    """

    group: "Group"
    tokens: list[int]
    kv: SequenceKV | None = None
    sequence: Sequence | None = None
    swapped: SwappedKV | None = None
    last_turn: int = 0
    rank: Rank = field(init=False)

    @property
    def place(self) -> int:
        """Its place in its request's order: 0 is the first answer."""
        return self.group.members.index(self)

    def yields_to(self, other: "Member") -> bool:
        """Tell whether it gives its memory up for one who has none.

        It does if it is more than the other's client has, or the other's request if both have the same client; or has
        come later than one who has waited too long.
        """
        mine, theirs = self.rank, other.rank
        is_same = self.group.client == other.group.client
        is_more = other.place < self.place if is_same else theirs.share < mine.share
        return theirs < mine and (is_more or (not theirs.is_in_time and theirs.arrival < mine.arrival))


@dataclass(eq=False, slots=True)
class Group:
    """A request: its answers that have not ended, in the order in which they have their turns.

    Those in the pool are before those that are not.

    Attributes:
        prompt_tokens: what it counts for in the queue.
        priority: lower goes first.
        client: whose it is.
        arrival: its place among all requests.
        granted: done once the first answer has its tables.
        events: the tokens of all answers, or what ended them.
        idle_since: when it was last without any answer in the pool, monotonic.
        is_overdue: whether it has been so for too long once.
        last_turn: the number of the newest turn of one of its answers that another's could have had as well.
        context: the request's, for what is logged of it elsewhere.
    """

    prompt_tokens: int
    priority: int
    client: int
    arrival: int
    granted: asyncio.Future[None]
    members: list[Member] = field(default_factory=list)
    events: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    idle_since: float = field(default_factory=time.monotonic)
    is_overdue: bool = False
    last_turn: int = 0
    context: Context = field(default_factory=copy_context)

    @property
    def tables(self) -> list[SequenceKV]:
        """The block tables of the answers that have theirs."""
        return [member.kv for member in self.members if member.kv is not None]


def number(groups: Collection[Group]) -> None:
    """Give the answers of all requests their ranks; of those that wait, the first one its."""
    most_urgent = min((group.priority for group in groups), default=0)
    by_client: dict[int, list[tuple[int, bool, int, int, Member]]] = defaultdict(list)
    for group in groups:
        for place, member in enumerate(group.members if group.granted.done() else group.members[:1]):
            is_in_time = not group.is_overdue or place > 0
            priority = group.priority if is_in_time else most_urgent
            by_client[group.client].append((priority, is_in_time, place, group.arrival, member))
    for members in by_client.values():
        ordered = sorted(members, key=lambda entry: entry[:4])
        for share, (priority, is_in_time, _, arrival, member) in enumerate(ordered):
            member.rank = Rank(priority, share, is_in_time, arrival)
