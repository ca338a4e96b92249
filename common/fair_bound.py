"""A bound on what all clients hold together, of which nobody can take everything."""

from collections import Counter

_TIMES_FREE = 8
"""Who would hold more than so many times of what is left free gets no more: one client has eight ninths at most, and
another one of the rest likewise; a single thing of any size, if there is room. Dynamic thresholds, as switches share
their memory among ports (Choudhury and Hahne, 1998)."""


class FairBound:
    """Counts what each client holds."""

    def __init__(self, most: int) -> None:
        """Take how much all may hold."""
        self._most = most
        self._held: Counter[int] = Counter()
        self.total = 0
        """How much all hold."""

    def held(self, client: int) -> int:
        """Return how much a client holds."""
        return self._held[client]

    def excess(self, amount: int, client: int) -> int:
        """Return how much has to be given back before a client may take an amount; 0 if it may at once."""
        free_for_others = (self._held[client] + amount) // _TIMES_FREE if self._held[client] else 0
        return max(0, amount + free_for_others - (self._most - self.total))

    def take(self, amount: int, client: int) -> None:
        """Note that a client holds more."""
        self.total += amount
        self._held[client] += amount

    def give_back(self, amount: int, client: int) -> None:
        """Note that a client holds less."""
        self.total -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]
