"""Which of several peers that stand in for each other is asked last: one that fails while the others do not."""

import time

_SUSPECT_SECONDS = 1.0
_FIRST_REST_SECONDS = 1.0
_MAX_REST_SECONDS = 30.0


class Breaker:
    """What is thought of one peer. It is a place in the order only: where all rest, all are asked as before.

    A failure alone may be the request's own fault. It makes the peer a suspect for a moment, so that it does not get
    the next request as well for being the least busy. If another peer then gives the answer, it is to blame, and rests:
    twice as long each time, until it succeeds. After a rest one request tries it, while the others still avoid it.
    """

    def __init__(self) -> None:
        self._num_blamed = 0
        self._rests_until = 0.0

    @property
    def resting(self) -> bool:
        """Whether others are to be asked before this one."""
        return time.monotonic() < self._rests_until

    def asked(self) -> None:
        """Note that the peer is asked: if that is its trial after a rest, further requests still avoid it."""
        if self._num_blamed and not self.resting:
            self._rest(self._rest_seconds)

    def failed(self) -> None:
        """Note that the peer failed, whoever is to blame."""
        self._rest(_SUSPECT_SECONDS)

    def blamed(self) -> float:
        """Note that another peer did what this one failed to do; return for how many seconds it rests now."""
        self._num_blamed += 1
        self._rest(self._rest_seconds)
        return self._rest_seconds

    def succeeded(self) -> None:
        """Note that the peer did what it was asked for."""
        self._num_blamed = 0
        self._rests_until = 0.0

    @property
    def _rest_seconds(self) -> float:
        return min(_FIRST_REST_SECONDS * 2.0 ** (self._num_blamed - 1), _MAX_REST_SECONDS)

    def _rest(self, seconds: float) -> None:
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)
