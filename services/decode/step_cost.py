"""What a step costs by its number of sequences, and how many of one request's it bears beside other requests'."""

from collections.abc import Callable
from dataclasses import dataclass

_MANY = 16
_REPEATS = 3
_FACTOR = 1.5
"""By which the answers that a request has beyond its first one may make the steps of others longer."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step of n sequences: base + n * each.

    On a GPU `each` is next to nothing up to hundreds of sequences; on a CPU 16 sequences take three times as long as
    one.
    """

    base: float
    each: float

    @classmethod
    def measure(cls, seconds: Callable[[int], float]) -> "StepCost":
        """Return the cost by `seconds`, which computes for so many sequences and tells how long that took."""
        seconds(_MANY)  # the first time takes longer
        one, many = (min(seconds(number) for _ in range(_REPEATS)) for number in (1, _MANY))
        each = max(many - one, 0.0) / (_MANY - 1)
        return cls(max(one - each, 0.0), each)

    def most_sequences(self, first_answers: int, most: int) -> int:
        """Return how many sequences a step may have, of which so many are requests' first answers; at most `most`."""
        seconds = _FACTOR * (self.base + self.each * first_answers) - self.base  # for what each costs
        if self.each * most <= seconds:
            return most
        return max(int(seconds / self.each), first_answers + 1)  # whatever it costs, further answers go on
