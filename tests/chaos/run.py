"""One run: the right answers first, then the load with the kills, then what is left behind."""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.chaos.killer import Killer
from tests.chaos.load import Outcomes, Request, ask, judge, requests
from tests.cluster import Cluster

TTL_SECONDS = 10
_DEADLINE_SECONDS = 120


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    num_requests: int = 200
    num_prompts: int = 40
    concurrency: int = 4
    seed: int = 0
    pause_seconds: tuple[float, float] = (2.0, 6.0)


@dataclass
class Report:
    """What the run shows."""

    outcomes: Outcomes
    kills: dict[str, int]
    counters: dict[str, float]
    leaks: list[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether every request got the right text and nothing is left behind."""
        return set(self.outcomes.counts) == {"right"} and not self.leaks

    def __str__(self) -> str:
        slowest = max(self.outcomes.seconds)
        lines = [
            f"requests      {sum(self.outcomes.counts.values())} in {self.seconds:.0f} s, the slowest {slowest:.1f} s",
            f"answers       {_counts(self.outcomes.counts)}",
            f"kills         {_counts(self.kills)}",
            f"recoveries    {_counts({name: int(value) for name, value in self.counters.items()})}",
            f"left behind   {', '.join(self.leaks) or 'nothing'}",
        ]
        return "\n".join([*lines, *self.outcomes.troubles[:20]])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


async def run(plan: Plan, folder: Path | None = None) -> Report:
    """Run it on a cluster of its own, whose logs stay in `folder`."""
    folder = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    flags = ("--store-ttl-seconds", str(TTL_SECONDS))
    gateway = ("--request-timeout-seconds", str(_DEADLINE_SECONDS))
    async with Cluster(
        folder, worker_flags=flags, decode_flags=("--kv-memory-gib", "0.5"), gateway_flags=gateway
    ) as up:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=up.url, timeout=None, limits=limits) as client:
            asked = requests(plan.num_prompts, plan.seed)
            expected = {request: await ask(client, request) for request in asked}
            return await _disturbed(plan, up, client, expected)


async def _disturbed(plan: Plan, up: Cluster, client: httpx.AsyncClient, expected: dict[Request, str]) -> Report:
    killer = Killer(up, plan.seed, pause_seconds=plan.pause_seconds)
    outcomes, started = Outcomes(), time.monotonic()
    turns = iter([request for index in range(plan.num_requests) for request in [list(expected)[index % len(expected)]]])

    async def keep_asking() -> None:
        for request in turns:
            await judge(client, request, expected[request], outcomes)

    killing = asyncio.create_task(killer.run())
    await asyncio.gather(*(keep_asking() for _ in range(plan.concurrency)))
    seconds = time.monotonic() - started
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    await killer.settle()
    counters = await _counters(up)
    return Report(outcomes, dict(killer.kills), counters, await leaks(up), seconds)


_RECOVERIES = ("decode_failovers", "prefill_failovers", "store_fallbacks", "skeletons_reused")


async def _counters(up: Cluster) -> dict[str, float]:
    """Return which recoveries the gateway counted, which lived through it all, and those workers that still live."""
    totals: dict[str, float] = {}
    for name in up.members:
        if name != "store":
            for sample, value in (await up.metrics(name)).items():
                short = sample.removeprefix("structkv_").removesuffix("_total")
                if short in _RECOVERIES:
                    totals[short] = totals.get(short, 0) + value
    return totals


async def leaks(up: Cluster) -> list[str]:
    """Return what is left a moment after the last request: blocks, prompts, and keys beyond their time to live."""
    found = []
    await asyncio.sleep(1)
    for kind, gauge in (("decode", "structkv_kv_blocks_used"), ("prefill", "structkv_prefill_prompts")):
        held = {member.name: (await up.metrics(member.name))[gauge] for member in up.of(kind)}
        found += [f"{gauge} {count:.0f} in {name}" for name, count in held.items() if count]
    async with up.store_client() as store:
        immortal = [key for key in await store.keys("*") if await store.pttl(key) == -1]
        found += [f"{key.decode()} without a time to live" for key in immortal]
        await asyncio.sleep(2 * TTL_SECONDS + 1)
        if late := await store.keys("*"):
            found.append(f"{len(late)} keys past their time to live")
    return found
