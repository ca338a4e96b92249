"""Whose turn a step is, and who goes first for memory: equal shares for clients, and of a client for its requests."""

import asyncio
from collections import Counter

import pytest

from services.decode.group import Group, Member, number
from services.decode.step_cost import StepCost
from services.decode.turns import Turns

DEAR = StepCost(base=3.0, each=1.0)
"""Besides what it costs to have one, two or three first answers, two further ones may be in a step; then three."""


@pytest.fixture
async def granted() -> "asyncio.Future[None]":
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


class Requests:
    """Requests of several clients, in the order in which they came."""

    def __init__(self, granted: "asyncio.Future[None]") -> None:
        self._granted = granted
        self.groups: list[Group] = []

    def add(self, client: int, answers: int = 1, *, requests: int = 1, priority: int = 0) -> None:
        """Add requests of a client with so many answers each."""
        for _ in range(requests):
            group = Group(10, priority, client, len(self.groups), self._granted)
            group.members = [Member(group, [10]) for _ in range(answers)]
            self.groups.append(group)

    @property
    def members(self) -> list[Member]:
        number(self.groups)
        return [member for group in self.groups for member in group.members]

    def turns(self, turns: Turns, steps: int) -> list[Counter[int]]:
        """Take steps; return how many sequences of each client are in each."""
        taken = []
        for _ in range(steps):
            chosen = turns.choose(self.members, len(self.groups))
            for member in chosen:
                turns.taken(member)
            taken.append(Counter(member.group.client for member in chosen))
        return taken


@pytest.fixture
def requests(granted: "asyncio.Future[None]") -> Requests:
    return Requests(granted)


def test_where_there_are_fewer_places_than_clients_all_have_as_many_turns(requests: Requests) -> None:
    requests.add(1, answers=100)
    requests.add(2, answers=2)
    requests.add(3, answers=2, requests=3)
    turns = Turns(256, StepCost(base=0.0, each=1.0))  # one place beyond the first answers
    had = sum(requests.turns(turns, 300), Counter())
    assert {client: number - 300 for client, number in had.items()} == {1: 100, 2: 100, 3: 100}


def test_one_clients_many_requests_are_no_more_than_anothers_one(requests: Requests) -> None:
    requests.add(1, answers=64, requests=8)
    requests.add(2)
    for step in requests.turns(Turns(64, DEAR), 10):
        assert step[2] == 1, "who has one request is in every step"
        assert step[1] <= 4


def test_further_requests_and_answers_take_turns(requests: Requests) -> None:
    requests.add(1, answers=2, requests=6)
    requests.add(2)
    turns, seen = Turns(64, DEAR), Counter[Member]()
    for _ in range(44):
        chosen = turns.choose(requests.members, len(requests.groups))
        for member in chosen:
            turns.taken(member)
        seen.update(chosen)
    first = requests.groups[0].members[0]
    further = [seen[member] for member in requests.members if member.group.client == 1 and member is not first]
    assert seen[first] == 44
    assert max(further) - min(further) <= 1
    assert min(further) > 0


def test_clients_have_equal_shares_of_what_is_more(requests: Requests) -> None:
    requests.add(1, answers=8, requests=5)
    requests.add(2, answers=8)
    taken = requests.turns(Turns(64, DEAR), 30)
    assert abs(sum(step[1] for step in taken) - sum(step[2] for step in taken)) <= 2


def test_a_full_batch_is_shared_by_clients(requests: Requests) -> None:
    requests.add(1, requests=20)
    requests.add(2, requests=2)
    (step,) = requests.turns(Turns(8, None), 1)
    assert step == {1: 6, 2: 2}


def test_one_client_alone_fills_the_batch(requests: Requests) -> None:
    requests.add(1, requests=5)
    requests.add(1, answers=3)
    (step,) = requests.turns(Turns(8, None), 1)
    assert step == {1: 8}
    (step,) = requests.turns(Turns(8, StepCost(0.01, 0.0)), 1)
    assert step == {1: 8}, "where a sequence costs nothing none is left out"


def test_the_urgent_go_before_shares(requests: Requests) -> None:
    requests.add(1)
    requests.add(2, requests=8, priority=-1)
    (step,) = requests.turns(Turns(4, None), 1)
    assert step == {2: 4}


def test_memory_is_given_up_for_a_client_that_has_less(requests: Requests) -> None:
    requests.add(1, requests=3)
    requests.add(2)
    first, _, third, other = requests.members
    assert third.yields_to(other)
    assert not first.yields_to(other)
    assert not other.yields_to(third)


def test_a_clients_requests_do_not_give_up_memory_for_each_other(requests: Requests) -> None:
    requests.add(1, requests=3)
    first, second, third = requests.members
    assert not third.yields_to(first)
    assert not third.yields_to(second)


def test_answers_give_up_memory_for_another_request_of_their_client(requests: Requests) -> None:
    requests.add(1, answers=3)
    requests.add(1)
    first, second, third, other = requests.members
    assert second.yields_to(other)
    assert third.yields_to(other)
    assert not first.yields_to(other)


def test_who_waits_too_long_goes_before_who_came_later(requests: Requests) -> None:
    requests.add(1, requests=3)
    requests.add(2)
    requests.groups[1].is_overdue = True
    first, overdue, third, other = requests.members
    assert overdue.rank < first.rank
    assert third.yields_to(overdue)
    assert other.yields_to(overdue)
    assert not first.yields_to(overdue), "it came before"
