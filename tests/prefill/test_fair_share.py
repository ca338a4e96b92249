"""Clients have equal shares of a prefill worker's time."""

from services.prefill.fair_share import FairShare

ANNA, BERT, CARL = 1, 2, 3


def run(share: FairShare, steps: int, **seconds: float) -> list[str]:
    """Give so many turns to clients with steps of so many seconds; return whose they were."""
    clients = {name: number for number, name in enumerate(sorted(seconds), 1)}
    turns = []
    for _ in range(steps):
        share.present(set(clients.values()))
        name = min(clients, key=lambda name: share.used(clients[name]))
        share.add(clients[name], seconds[name])
        turns.append(name)
    return turns


def test_shares_are_of_time_and_not_of_steps() -> None:
    turns = run(FairShare(), 40, anna=3.0, bert=1.0)
    assert turns.count("bert") == 3 * turns.count("anna")


def test_who_was_alone_owes_nothing_to_who_comes() -> None:
    share = FairShare()
    run(share, 100, anna=1.0)
    turns = run(share, 20, anna=1.0, bert=1.0)
    assert turns.count("anna") == 10


def test_time_away_is_no_credit() -> None:
    share = FairShare()
    run(share, 20, anna=1.0, bert=1.0)
    run(share, 50, anna=1.0)
    turns = run(share, 20, anna=1.0, bert=1.0)
    assert turns.count("bert") == 10


def test_being_away_for_a_moment_forgives_nothing() -> None:
    share = FairShare()
    share.present({ANNA, BERT})
    share.add(ANNA, 5.0)
    share.present({BERT})
    share.add(BERT, 1.0)
    share.present({ANNA, BERT, CARL})
    assert share.used(ANNA) == 5.0
    assert share.used(BERT) == share.used(CARL) == 1.0


def test_clients_that_are_gone_are_forgotten_once_all_others_have_had_as_much() -> None:
    share = FairShare()
    for client in range(1000):
        share.present({client, 1000})
        for one in (client, 1000):
            share.add(one, 1.0)
    assert len(share._seconds) < 10
