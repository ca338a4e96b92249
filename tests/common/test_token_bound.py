"""A queue is bounded in tokens, and a refusal says when to come again."""

import pytest

from common.errors import OverloadedError
from common.token_bound import TokenBound


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bound(clock: Clock) -> TokenBound:
    return TokenBound("max_queued_tokens", 1000, clock)


def test_entries_fit_up_to_the_bound(bound: TokenBound) -> None:
    bound.enter(600)
    bound.enter(400, client=1)
    with pytest.raises(OverloadedError, match=r"1000 prompt tokens are queued.*max_queued_tokens \(1000\)"):
        bound.enter(1)
    bound.leave(400, client=1)
    bound.enter(1)


def test_a_lone_entry_is_always_taken(bound: TokenBound) -> None:
    bound.enter(5000)
    with pytest.raises(OverloadedError):
        bound.enter(1)


def retry_after(bound: TokenBound, tokens: int) -> int | None:
    with pytest.raises(OverloadedError) as refused:
        bound.enter(tokens)
    return refused.value.retry_after_seconds


def test_a_refusal_says_when_the_queue_has_room_at_its_pace(bound: TokenBound, clock: Clock) -> None:
    bound.enter(100)
    bound.enter(900, client=1)
    clock.seconds += 2
    bound.leave(100)  # 50 tokens a second
    assert retry_after(bound, 600) == 10


def test_the_time_in_which_nothing_was_queued_is_not_the_queues_pace(bound: TokenBound, clock: Clock) -> None:
    bound.enter(100)
    clock.seconds += 2
    bound.leave(100)
    clock.seconds += 3600
    bound.enter(1000, client=1)
    assert retry_after(bound, 500) == 10


def test_it_is_at_least_a_second_and_at_most_a_minute(bound: TokenBound, clock: Clock) -> None:
    bound.enter(1000)
    assert retry_after(bound, 500) == 1, "nothing has left yet"
    bound.leave(1000)
    bound.enter(1000)
    assert retry_after(bound, 500) == 1
    clock.seconds += 10_000
    bound.leave(500)
    assert retry_after(bound, 1000) == 60
