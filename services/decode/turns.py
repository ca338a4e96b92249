"""Who is part of a step."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from itertools import count
from operator import attrgetter, itemgetter

from services.decode.group import Member
from services.decode.step_cost import StepCost


class Turns:
    """Chooses each step's members by their ranks.

    With a `step_cost` it leaves out what would make the step too long for others: beside other requests, the answers
    that a request has beyond its first one; beside other clients, also the requests that a client has beyond those that
    every other one has. These take turns, of which each client has equally many, and so have its requests and their
    answers.
    """

    def __init__(self, max_running: int, step_cost: StepCost | None) -> None:
        self._max_running = max_running
        self._step_cost = step_cost
        self._numbers = count(1)
        self._further: set[Member] = set()

    def choose(self, ready: Iterable[Member], num_requests: int) -> list[Member]:
        """Return whose turn it is of those who are ready; there are so many requests, theirs and others."""
        by_rank = sorted(ready, key=attrgetter("rank"))
        if self._step_cost is not None and num_requests > 1:
            first = _first(by_rank)
            self._further = set(by_rank).difference(first)
            further = _in_turn(self._further)
            most = self._step_cost.most_sequences(max(1, len(first)), len(by_rank))
            by_rank = first + further[: most - len(first)]
        return by_rank[: self._max_running]

    def taken(self, member: Member) -> None:
        """Note that a member has its turn."""
        member.last_turn = next(self._numbers)
        if member in self._further:
            member.group.last_turn = member.last_turn


def _first(by_rank: list[Member]) -> list[Member]:
    """Return the first answers of each client's first requests: of as many as the client with fewest has."""
    by_client: dict[int, list[Member]] = defaultdict(list)
    for member in by_rank:
        if member.group.members[0] is member:
            by_client[member.group.client].append(member)
    fewest = min(map(len, by_client.values()), default=0)
    chosen = {member for members in by_client.values() for member in members[:fewest]}
    return [member for member in by_rank if member in chosen]


def _in_turn(members: Iterable[Member]) -> list[Member]:
    """Order members by urgency; then all clients have equal shares, and of a client all requests; then whose client
    waits longest for such a turn is next, and of its members who does.
    """
    in_turn = sorted(members, key=lambda member: member.last_turn)
    in_turn = _dealt(in_turn, lambda member: member.group)
    last_turns: Counter[int] = Counter()
    for member in in_turn:
        last_turns[member.group.client] = max(last_turns[member.group.client], member.group.last_turn)
    in_turn.sort(key=lambda member: last_turns[member.group.client])
    in_turn = _dealt(in_turn, lambda member: member.group.client)
    return sorted(in_turn, key=lambda member: member.group.priority)


def _dealt(members: list[Member], owner: Callable[[Member], Hashable]) -> list[Member]:
    """Order members so that each owner's first ones come before anybody's second ones."""
    numbers: Counter[Hashable] = Counter()
    numbered = []
    for member in members:
        numbered.append((numbers[owner(member)], member))
        numbers[owner(member)] += 1
    return [member for _, member in sorted(numbered, key=itemgetter(0))]
