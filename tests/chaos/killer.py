"""Kills a random member every few seconds, never the last ready one of its kind, and starts it again."""

import asyncio
import random
from collections import Counter

from tests.cluster import Cluster


class Killer:
    """Run it beside the load; `kills` counts what it did."""

    def __init__(self, cluster: Cluster, seed: int, *, pause_seconds: tuple[float, float]) -> None:
        self._cluster = cluster
        self._dice = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._down: set[str] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self.kills: Counter[str] = Counter()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(self._dice.uniform(*self._pause_seconds))
            if victims := self._victims():
                name = self._dice.choice(victims)
                self._cluster.kill(name)
                self._down.add(name)
                self.kills[self._cluster.members[name].kind] += 1
                restart = asyncio.create_task(self._restart(name))
                self._restarts.add(restart)
                restart.add_done_callback(self._restarts.discard)

    async def settle(self) -> None:
        """Wait until everything that was killed is back."""
        await asyncio.gather(*self._restarts)

    def _victims(self) -> list[str]:
        """Return who may be killed. The store may always be; it comes up as often as a kind of workers."""
        names = ["store"] if "store" not in self._down else []
        for kind in ("prefill", "decode"):
            up = [member.name for member in self._cluster.of(kind) if member.name not in self._down]
            if len(up) > 1:
                names.append(self._dice.choice(up))
        return names

    async def _restart(self, name: str) -> None:
        await asyncio.sleep(self._dice.uniform(0.2, 1.5))
        await self._cluster.start(name)
        self._down.discard(name)
