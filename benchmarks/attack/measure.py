"""Runs attacks on the real service, one after the other, each after a quiet phase."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.attack.attacker import Attacker
from benchmarks.attack.catalogue import ATTACKS
from benchmarks.attack.summary import Outcome, misses, pooled, rows
from benchmarks.attack.usage import Usage
from benchmarks.attack.victim import Service, answers_again, watch
from benchmarks.attack.wire import Target
from benchmarks.processes import Processes, ServiceError, free_port
from benchmarks.record import Record, Row, head
from common.model import decoder
from common.model.source import served_name

_HOST = "127.0.0.1"
_WARM_SECONDS = 3.0
_MOST_TIMES = 3
_RECOVERY_SECONDS = 120.0
_REST_SECONDS = 3.0
"""Between the first answer after an attack and the look at the memory that is left."""


def choose(names: str) -> list[str]:
    """Return the attacks that are named, separated by commas; every one if there is no name. Raises ServiceError."""
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(ATTACKS)
    if unknown := [name for name in chosen if name not in ATTACKS]:
        raise ServiceError(f"no attack is named {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    return chosen


def measure(model: str, attacks: Sequence[str], seconds: float, log_folder: Path) -> Iterator[Record]:
    """Measure each attack in phases of so many seconds; yield what is known after each."""
    spec = decoder.load(model, device="cpu", dtype="auto").spec
    pending, found = list(attacks), list[Row]()
    while pending:
        with Processes(model, log_folder) as processes:
            for outcome in _run(processes, model, spec.vocab_size, pending, seconds):
                found += rows(outcome)
                pending = pending[1:]
                yield Record("attack", head(model=model, seconds=seconds), found)


def _run(
    processes: Processes, model: str, vocab_size: int, attacks: Sequence[str], seconds: float
) -> Iterator[Outcome]:
    """Attack one service; stop early where it does not recover, so that the next attack finds a new one."""
    target, service = _start(processes, model, vocab_size)
    asyncio.run(watch(service, _WARM_SECONDS, Usage(processes.pids)))
    for attack in attacks:
        outcome = _attack(attack, target, service, processes, seconds)
        yield outcome
        if outcome.recovery is None or not processes.all_run():
            return


def _attack(name: str, target: Target, service: Service, processes: Processes, seconds: float) -> Outcome:
    """Attack once, and twice more what misses a target: a moment of somebody else's work on the machine looks alike."""
    outcomes: list[Outcome] = []
    while len(outcomes) < _MOST_TIMES:
        outcome = asyncio.run(_attack_once(name, target, service, processes, seconds))
        outcomes.append(outcome)
        held = not misses(Record("attack", {}, list(rows(outcome))), name)
        if (held and len(outcomes) == 1) or outcome.recovery is None or not processes.all_run():
            break
    return pooled(outcomes)


def _start(processes: Processes, model: str, vocab_size: int) -> tuple[Target, Service]:
    """Start a service; return it as the attacker and as the victim see it, who have a key each."""
    keys = [secrets.token_hex(16) for _ in range(2)]
    name, metrics_port = served_name(model), free_port()
    decode = processes.worker("decode", "--metrics-port", str(metrics_port))
    prefill = processes.worker("prefill")
    url, _ = processes.gateway(decode, prefill, "--served-model-name", name, "--api-keys", ",".join(keys))
    port, worker_port = (int(address.rpartition(":")[2]) for address in (url, decode))
    return (
        Target(_HOST, port, keys[0], name, vocab_size, metrics_port, worker_port),
        Service(url, keys[1], name, decode, f"http://{_HOST}:{metrics_port}/metrics"),
    )


async def _attack_once(name: str, target: Target, service: Service, processes: Processes, seconds: float) -> Outcome:
    with Attacker(name, target) as attacker:
        usage = Usage({**processes.pids, "attacker": attacker.pid})
        quiet = await watch(service, seconds, usage)
        attacker.start()
        attacked = await watch(service, seconds, usage)
        tally = await asyncio.to_thread(attacker.stop)
    recovery = await answers_again(service, _RECOVERY_SECONDS)
    await asyncio.sleep(_REST_SECONDS)
    return Outcome(name, quiet, attacked, Usage(processes.pids).memory(), recovery, tally)
