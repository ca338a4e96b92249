"""From what the victim saw to figures, and whether the service held."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.attack.victim import Phase
from benchmarks.attack.wire import Tally
from benchmarks.record import Parameter, Record, Row

MAX_RATIO = 3.0
"""Of the victim's 99th percentile of inter-token latency, attacked over quiet."""

MAX_HEALTH_SECONDS = 1.0

MAX_WAIT_SECONDS = 5.0
"""That a short request may wait for its first token longer than the longest did before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack.

    Attributes:
        attack: its name.
        quiet: what the victim saw before.
        attacked: what it saw meanwhile.
        after: bytes of each process's memory when the service had recovered.
        recovery: seconds from the attack's end to a short request's answer; None if there was none.
        tally: what the attacker got.
        times: how often it was tried.
    """

    attack: str
    quiet: Phase
    attacked: Phase
    after: Mapping[str, int]
    recovery: float | None
    tally: Tally
    times: int = 1


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """Return an attack that was tried several times as one: all that the victim saw, the largest sizes and waits."""
    recoveries = [outcome.recovery for outcome in outcomes]
    return Outcome(
        outcomes[0].attack,
        _pooled([outcome.quiet for outcome in outcomes]),
        _pooled([outcome.attacked for outcome in outcomes]),
        _largest([outcome.after for outcome in outcomes]),
        None if None in recoveries else max(known for known in recoveries if known is not None),
        sum((outcome.tally for outcome in outcomes), Counter()),
        len(outcomes),
    )


def _pooled(phases: Sequence[Phase]) -> Phase:
    def seen(name: str) -> list[float]:
        return [sample for phase in phases for sample in getattr(phase, name)]

    return Phase(
        seen("gaps"),
        seen("first_tokens"),
        seen("formed"),
        seen("tokenized"),
        seen("health"),
        seen("worker"),
        failures=sum((phase.failures for phase in phases), Counter()),
        memory=_largest([phase.memory for phase in phases]),
        cpu={name: fmean(phase.cpu[name] for phase in phases) for name in phases[0].cpu},
    )


def _largest(sizes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: max(known.get(name, 0) for known in sizes) for name in sizes[0]}


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of all do not exceed; infinity if there are none."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)] if samples else math.inf


def rows(outcome: Outcome) -> Iterator[Row]:
    """Return an attack's figures."""
    for name, phase in (("quiet", outcome.quiet), ("attacked", outcome.attacked)):
        given: dict[str, Parameter] = {"attack": outcome.attack, "phase": name}
        yield Row("pieces", given, [len(phase.gaps)], "")
        for share in (50, 99):
            yield Row(f"itl_p{share}", given, _finite(percentile(phase.gaps, share / 100)), "s")
        for what, samples in _longest(phase):
            yield Row(what, given, _finite(max(samples, default=math.inf)), "s")
        for what, number in phase.failures.items():
            yield Row("failures", {**given, "what": what}, [number], "")
        for process, size in phase.memory.items():
            yield Row("memory", {**given, "process": process}, [size], "bytes")
    for process, cores in outcome.attacked.cpu.items():
        yield Row("cpu", {"attack": outcome.attack, "phase": "attacked", "process": process}, [cores], "cores")
    own: dict[str, Parameter] = {"attack": outcome.attack, "phase": "after"}
    yield Row("times", own, [outcome.times], "")
    for process, size in outcome.after.items():
        yield Row("memory", {**own, "process": process}, [size], "bytes")
    yield Row("recovery", own, [] if outcome.recovery is None else [outcome.recovery], "s")
    for what, number in outcome.tally.items():
        yield Row("got", {**own, "what": what}, [number], "")


def _longest(phase: Phase) -> Iterable[tuple[str, Sequence[float]]]:
    return (
        ("itl_max", phase.gaps),
        ("first_token", phase.first_tokens),
        ("formed", phase.formed),
        ("tokenize", phase.tokenized),
        ("health", phase.health),
        ("worker", phase.worker),
    )


def _finite(value: float) -> list[float]:
    return [value] if math.isfinite(value) else []


def ratio(record: Record, attack: str) -> float:
    """Return the 99th percentile of inter-token latency under an attack over the quiet one."""
    quiet, attacked = (record.median("itl_p99", attack=attack, phase=phase) for phase in ("quiet", "attacked"))
    return math.inf if quiet is None or attacked is None else attacked / quiet


def misses(record: Record, attack: str) -> list[str]:
    """Return which targets an attack broke, in words; none if the service held."""
    health = record.median("health", attack=attack, phase="attacked")
    missed = []
    if ratio(record, attack) > MAX_RATIO:
        missed.append("p99")
    if health is None or health >= MAX_HEALTH_SECONDS:
        missed.append("/health")
    if any(_wait(record, attack, name) > MAX_WAIT_SECONDS for name in ("first_token", "formed")):
        missed.append("first token")
    if counts(record, "failures", "what", attack=attack, phase="attacked"):
        missed.append("failures")
    return missed


def held_share(record: Record) -> float:
    """Return under how many of the attacks the service held, as a share."""
    names = attacks(record)
    return sum(not misses(record, attack) for attack in names) / len(names)


def attacks(record: Record) -> list[str]:
    """Return the attacks' names, in order."""
    return list(dict.fromkeys(str(row.parameters["attack"]) for row in record.rows))


def _wait(record: Record, attack: str, name: str) -> float:
    """Return how much longer than before the longest took, in seconds; infinity if none was asked."""
    quiet, attacked = (record.median(name, attack=attack, phase=phase) for phase in ("quiet", "attacked"))
    return math.inf if quiet is None or attacked is None else attacked - quiet


def counts(record: Record, name: str, key: str, **parameters: Parameter) -> dict[str, float]:
    """Return a figure by one parameter, where the others are these."""
    found = (row for row in record.rows if row.name == name)
    return {
        str(row.parameters[key]): row.samples[0]
        for row in found
        if all(row.parameters.get(own) == value for own, value in parameters.items())
    }
