"""Whose turn it is: the client's whose prompts have had least of the worker's time.

The virtual counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), in seconds.
"""

from collections.abc import Set as AbstractSet


class FairShare:
    """Counts the seconds that each client has had.

    Time without anything to run is no credit: who comes, or comes back, has had at least as much as the one of those
    there that had least.
    """

    def __init__(self) -> None:
        self._least = 0.0
        self._present: AbstractSet[int] = frozenset()
        self._seconds: dict[int, float] = {}  # of those that have had more than the least

    def present(self, clients: AbstractSet[int]) -> None:
        """Note who has something to run now."""
        self._least = min(map(self.used, clients & self._present), default=self._least)
        self._present = clients
        self._seconds = {client: seconds for client, seconds in self._seconds.items() if seconds > self._least}

    def used(self, client: int) -> float:
        """Return the seconds that a client has had."""
        return self._seconds.get(client, self._least)

    def add(self, client: int, seconds: float) -> None:
        """Note a step that took so many seconds."""
        self._seconds[client] = self.used(client) + seconds
