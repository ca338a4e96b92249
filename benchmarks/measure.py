"""How things are timed: in turns, so that whatever else the machine does meets everybody alike."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

SampleT = TypeVar("SampleT")

_FIRST_ORDINARY_ID = 100
"""Special tokens come first in most vocabularies; a random prompt has none."""


def in_turns(measured: Mapping[str, Callable[[], SampleT]], repeats: int) -> dict[str, list[SampleT]]:
    """Call A, B, C, A, B, C and so on; return each one's results in order."""
    results: dict[str, list[SampleT]] = {name: [] for name in measured}
    for _ in range(repeats):
        for name, call in measured.items():
            results[name].append(call())
    return results


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Return so many token ids; the same ones for the same seed."""
    choose = random.Random(f"{seed}/{count}")  # noqa: S311  no secret
    return [choose.randrange(min(_FIRST_ORDINARY_ID, vocab_size - 1), vocab_size) for _ in range(count)]
