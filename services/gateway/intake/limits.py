"""What a process of the intake may take, for a body of a given length."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_NICENESS = 10
"""Streams and the model go first: with two such processes, a step of decode takes an eighth longer at most."""
_SECONDS = 3
_SECONDS_PER_MEGABYTE = 10
"""A few times what the slowest text takes. Beyond it are grammars and templates that find no end."""
_MEMORY_BYTES = 384 * 2**20
_MEMORY_PER_BYTE = 64
"""JSON's smallest values as Python objects take up to 40 times their text."""


def step_back() -> None:
    """Give way to others: in the queues of the processor, and where the system's memory runs out."""
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def seconds_for(body_bytes: int) -> int:
    """Return how long the processor may work on a body."""
    return _SECONDS + body_bytes * _SECONDS_PER_MEGABYTE // 2**20


def limit(body_bytes: int) -> None:
    """Bound this process: beyond its time it is ended by SIGXCPU, beyond its memory it gets none."""
    seconds = seconds_for(body_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        memory = mapped + _MEMORY_BYTES + body_bytes * _MEMORY_PER_BYTE
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
