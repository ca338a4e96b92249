"""The table of what attacks did, in Markdown."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.attack.summary import (
    MAX_HEALTH_SECONDS,
    MAX_RATIO,
    MAX_WAIT_SECONDS,
    attacks,
    counts,
    held_share,
    misses,
    ratio,
)
from benchmarks.record import Parameter, Record

_NOTHING = "\N{EN DASH}"


def table(record: Record) -> Iterator[str]:
    """Return the lines of the table, a row for each attack."""
    names = attacks(record)
    quiet = [row.median for row in record.rows if row.name == "itl_p99" and row.parameters["phase"] == "quiet"]
    known = [1000 * value for value in quiet if value is not None]
    yield f"The service held under {held_share(record):.0%} of {len(names)} attacks. It holds where the victim's p99 of"
    yield f"inter-token latency is at most {MAX_RATIO:g} times the quiet one, `/health` answers within"
    yield f"{MAX_HEALTH_SECONDS:g} s, no first token comes more than {MAX_WAIT_SECONDS:g} s later than the latest"
    yield "before, and nothing of the victim's fails. Pairs are quiet / attacked. The attacker has the least priority"
    yield "that the system gives, so that its own CPU time counts little."
    if any(_times(record, attack) for attack in names):
        yield "What missed was tried again, and has the figures of all times together."
    if known:
        yield f"The quiet p99 of inter-token latency over {len(known)} phases: {median(known):.0f} ms, from"
        yield f"{min(known):.0f} to {max(known):.0f} ms."
    yield ""
    yield from _table(_HEAD, [_cells(record, attack) for attack in names])


_HEAD = (
    "attack",
    "",
    "p99 ratio",
    "ITL p50, ms",
    "p99, ms",
    "max, ms",
    "`/health` max, s",
    "first token max, s",
    "with a schema",
    "`/tokenize` max, s",
    "worker's checks max, s",
    "failures",
    "gateway MiB before / peak / after",
    "decode MiB",
    "CPU cores gateway, prefill, decode, attacker",
    "recovery, s",
    "attacker got",
)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in cells:
        yield "| " + " | ".join(row) + " |"


def _cells(record: Record, attack: str) -> list[str]:
    missed = misses(record, attack)
    recovery = record.median("recovery", attack=attack)
    return [
        attack,
        ("**" + ", ".join(missed) + "**" if missed else "held") + _times(record, attack),
        _NOTHING if math.isinf(quotient := ratio(record, attack)) else f"{quotient:.2f}",
        *(_pair(record, attack, name, 1000) for name in ("itl_p50", "itl_p99", "itl_max")),
        *(_pair(record, attack, name) for name in ("health", "first_token", "formed", "tokenize", "worker")),
        _counts(record, "failures", attack=attack, phase="attacked"),
        *(_memory(record, attack, process) for process in ("gateway", "decode")),
        _cpu(record, attack),
        _NOTHING if recovery is None else f"{recovery:.1f}",
        _counts(record, "got", attack=attack),
    ]


def _times(record: Record, attack: str) -> str:
    times = record.median("times", attack=attack) or 1
    return f", {times:g} times" if times > 1 else ""


def _pair(record: Record, attack: str, name: str, factor: float = 1.0) -> str:
    values = [record.median(name, attack=attack, phase=phase) for phase in ("quiet", "attacked")]
    return " / ".join(_NOTHING if value is None else _number(factor * value) for value in values)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _memory(record: Record, attack: str, process: str) -> str:
    phases = ("quiet", "attacked", "after")
    sizes = [record.median("memory", attack=attack, phase=phase, process=process) for phase in phases]
    return " / ".join(_NOTHING if size is None else f"{size / 2**20:.0f}" for size in sizes)


def _cpu(record: Record, attack: str) -> str:
    processes = ("gateway", "prefill", "decode", "attacker")
    found = [record.median("cpu", attack=attack, phase="attacked", process=process) for process in processes]
    return ", ".join(_NOTHING if cores is None else f"{cores:.2f}" for cores in found)


def _counts(record: Record, name: str, **parameters: Parameter) -> str:
    found = counts(record, name, "what", **parameters)
    return ", ".join(f"{what}: {number:g}" for what, number in found.items()) or _NOTHING
