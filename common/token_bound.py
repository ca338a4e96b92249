"""A queue's bound in tokens: what it takes in, and when there may be room again."""

import math
import time
from collections.abc import Callable

from common.errors import OverloadedError
from common.fair_bound import FairBound

_DECAY = 0.9
"""How much the pace still counts for with every departure: about the last ten make it up."""
_MAX_RETRY_SECONDS = 60


class TokenBound:
    """Counts the tokens of a queue and refuses what goes beyond its bound; a lone entry is always taken.

    No client can fill it alone, see `FairBound`.

    A refusal says when to ask again: the time that the queue needs, at its pace so far, until the entry would fit.
    """

    def __init__(self, setting: str, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the setting's name, for the refusal, and its value; `clock` is in seconds."""
        self._setting = setting
        self._max_tokens = max_tokens
        self._bound = FairBound(max_tokens)
        self._clock = clock
        self._since = 0.0
        self._paced_seconds = 0.0
        self._paced_tokens = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the entries that are in the queue."""
        return self._bound.total

    def enter(self, tokens: int, client: int = 0) -> None:
        """Count an entry's tokens; raise OverloadedError if they do not fit."""
        bound = self._bound
        if bound.total and (excess := bound.excess(tokens, client)):
            raise OverloadedError(
                f"{bound.total} prompt tokens are queued, {bound.held(client)} of them yours; {tokens} more do not fit "
                f"into {self._setting} ({self._max_tokens})",
                retry_after_seconds=self._seconds_for(excess),
            )
        if not bound.total:
            self._since = self._clock()  # an empty queue has no pace
        bound.take(tokens, client)

    def leave(self, tokens: int, client: int = 0) -> None:
        """Count an entry's tokens no longer."""
        now = self._clock()
        self._paced_seconds = _DECAY * self._paced_seconds + now - self._since
        self._paced_tokens = _DECAY * self._paced_tokens + tokens
        self._since = now
        self._bound.give_back(tokens, client)

    def _seconds_for(self, tokens: int) -> int:
        """Estimate how long it takes until so many tokens have left; 1 if none has left yet."""
        if not self._paced_tokens:
            return 1
        seconds = tokens * self._paced_seconds / self._paced_tokens
        return min(max(1, math.ceil(seconds)), _MAX_RETRY_SECONDS)
