"""What all clients hold together is bounded, and no client takes everything."""

from common.fair_bound import FairBound


def fill(bound: FairBound, client: int) -> int:
    """Take one by one as much as a client may; return how much that is."""
    taken = 0
    while not bound.excess(1, client):
        bound.take(1, client)
        taken += 1
    return taken


def test_one_client_takes_most_and_others_most_of_the_rest() -> None:
    bound = FairBound(900)
    assert fill(bound, 1) == 800
    assert 80 <= fill(bound, 2) < 100
    assert fill(bound, 3) > 0
    assert bound.total <= 900


def test_many_clients_have_equal_shares() -> None:
    bound = FairBound(900)
    while any(not bound.excess(1, client) for client in range(10)):
        for client in range(10):
            if not bound.excess(1, client):
                bound.take(1, client)
    shares = [bound.held(client) for client in range(10)]
    assert max(shares) - min(shares) <= 1
    assert bound.total >= 0.98 * 900


def test_of_eight_one_leaves_one_and_less_can_be_used_by_one() -> None:
    for most in range(1, 8):
        assert fill(FairBound(most), 1) == most
    bound = FairBound(8)
    assert fill(bound, 1) == 7
    assert fill(bound, 2) == 1


def test_large_amounts_leave_others_their_part_as_small_ones_do() -> None:
    bound = FairBound(900)
    bound.take(700, 1)
    assert bound.excess(150, 1) > 0
    assert not bound.excess(100, 1)
    assert not bound.excess(150, 2)


def test_one_thing_may_take_all_the_room_there_is() -> None:
    assert not FairBound(900).excess(900, 1)


def test_what_is_given_back_may_be_taken_again() -> None:
    bound = FairBound(90)
    fill(bound, 1)
    excess = bound.excess(1, 1)
    assert excess > 0
    bound.give_back(excess, 1)
    assert not bound.excess(1, 1)


def test_who_holds_nothing_is_asked_for_no_more_than_the_room() -> None:
    bound = FairBound(10)
    bound.take(7, 1)
    assert not bound.excess(3, 2)
    assert bound.excess(5, 2) == 2
