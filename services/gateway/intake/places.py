"""Places that are taken in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiting:
    rank: float
    granted: asyncio.Future[None]


class Places:
    """A number of places. Those who wait get theirs by rank, lowest first."""

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: list[_Waiting] = []

    def is_wanted_before(self, rank: float) -> bool:
        """Tell whether somebody of a lower rank waits."""
        return any(waiting.rank < rank for waiting in self._waiting)

    @asynccontextmanager
    async def taken(self, rank: float) -> AsyncIterator[None]:
        """Hold a place for as long as the context lasts; wait for it before."""
        waiting = _Waiting(rank, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._grant()
        try:
            await waiting.granted
            yield
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                self._num_free += 1
            self._grant()

    def _grant(self) -> None:
        for waiting in sorted(self._waiting, key=lambda waiting: waiting.rank):
            if self._num_free and not waiting.granted.cancelled():
                self._num_free -= 1
                self._waiting.remove(waiting)
                waiting.granted.set_result(None)
