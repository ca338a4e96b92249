"""What a process of the intake may take, for a body of a given length."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_NICENESS = 5
"""A third of others' weight: streams go first, and so does the model if it computes on the same cores."""
_SECONDS = 1
_SECONDS_PER_MEGABYTE = 10
"""A few times what the slowest text takes. Beyond it are grammars and templates that find no end."""
_MEMORY_BYTES = 256 * 2**20
_MEMORY_PER_BYTE = 64
"""JSON's smallest values as Python objects take up to 30 times their text."""
_MEMORY_PER_CHARACTER = 192
"""Of a text that is tokenised at once: tokens with their places take 160 times its length."""


def step_back() -> None:
    """Give way to others: in the queues of the processor, and where the system's memory runs out."""
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def seconds_for(body_bytes: int) -> int:
    """Return how long the processor may work on a body."""
    return _SECONDS + body_bytes * _SECONDS_PER_MEGABYTE // 2**20


def limit(body_bytes: int, max_text_characters: int) -> None:
    """Bound this process: beyond its time it is ended by SIGXCPU, beyond its memory it gets none."""
    seconds = seconds_for(body_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        text = min(body_bytes, max_text_characters)
        memory = mapped + _MEMORY_BYTES + body_bytes * _MEMORY_PER_BYTE + text * _MEMORY_PER_CHARACTER
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
