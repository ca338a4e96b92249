"""Faults on purpose: drops, delays, cuts short and corrupts a skeleton's chunks, to show that decode notices."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, fields
from typing import Self

from common.pb import prefill_pb2, skeleton_pb2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Faults:
    """Each fault's probability, for every chunk that leaves.

    Attributes:
        drop: the chunk is not sent.
        delay: it is sent `delay_seconds` late.
        truncate: its keys lose their last half.
        corrupt: one bit of its values is flipped.
        delay_seconds: not a probability.
        seed: of the dice.
    """

    drop: float = 0.0
    delay: float = 0.0
    truncate: float = 0.0
    corrupt: float = 0.0
    delay_seconds: float = 1.0
    seed: int = 0
    _dice: random.Random = field(default_factory=random.Random, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `drop=0.01,corrupt=0.02`; raise ValueError for anything else."""
        known = {entry.name for entry in fields(cls) if not entry.name.startswith("_")}
        values: dict[str, float] = {}
        for entry in text.split(","):
            name, _, number = entry.strip().partition("=")
            if name not in known:
                raise ValueError(f"{name!r} is not a fault; there are {', '.join(sorted(known))}")
            values[name] = float(number)
            if values[name] < 0 or (name not in {"delay_seconds", "seed"} and values[name] > 1):
                raise ValueError(f"{name} must be a probability")
        seed = int(values.pop("seed", 0))
        return cls(seed=seed, _dice=random.Random(seed), **values)  # noqa: S311

    async def strike(self, events: AsyncIterator[prefill_pb2.PrefillEvent]) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        """Yield the events with faults in their chunks; all other messages pass."""
        async for event in events:
            if not event.HasField("chunk") or await self._damage(event.chunk):
                yield event

    async def _damage(self, chunk: skeleton_pb2.LayerChunk) -> bool:
        """Damage a chunk by chance; tell whether it is to be sent at all."""
        if self._hits(self.drop):
            return False
        if self._hits(self.delay):
            await asyncio.sleep(self.delay_seconds)
        if self._hits(self.truncate):
            chunk.keys = chunk.keys[: len(chunk.keys) // 2]
        if self._hits(self.corrupt):
            values = bytearray(chunk.values)
            values[self._dice.randrange(len(values))] ^= 1 << self._dice.randrange(8)
            chunk.values = bytes(values)
        return True

    def _hits(self, probability: float) -> bool:
        return self._dice.random() < probability
