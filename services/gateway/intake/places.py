"""Room that is taken in turn: who has waited longest for how little is next."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiting:
    rank: float
    size: int
    granted: asyncio.Future[None]


class Places:
    """A number of places. Those who wait get theirs by rank, lowest first; one too large for what is free is passed."""

    def __init__(self, num_places: int) -> None:
        self._free = num_places
        self._waiting: list[_Waiting] = []

    @property
    def contended(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    @asynccontextmanager
    async def taken(self, rank: float, size: int = 1) -> AsyncIterator[None]:
        """Hold this many places for as long as the context lasts; wait for them before."""
        waiting = _Waiting(rank, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._grant()
        try:
            await waiting.granted
            yield
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                self._free += size
            self._grant()

    def _grant(self) -> None:
        for waiting in sorted(self._waiting, key=lambda waiting: waiting.rank):
            if waiting.size <= self._free and not waiting.granted.cancelled():
                self._free -= waiting.size
                self._waiting.remove(waiting)
                waiting.granted.set_result(None)
