"""`python -m tests.chaos.soak`: load without kills, clients that leave included, and what grows under it."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.chaos.load import Outcomes, Request, ask, judge, requests
from tests.chaos.run import TTL_SECONDS, leaks
from tests.cluster import Cluster

_MEMORY_GROWTH = 1.15
"""How much more memory than after the warm-up is no leak: allocators keep what fragments."""
_MORE_FILES = 16
"""Connections that pools may open on top, once."""


@dataclass(frozen=True)
class Usage:
    """What a process has at one moment."""

    memory_bytes: int
    open_files: int

    @classmethod
    def of(cls, process_id: int) -> "Usage":
        process = psutil.Process(process_id)
        return cls(process.memory_info().rss, process.num_fds())


def usage(cluster: Cluster) -> dict[str, Usage]:
    """Return every member's."""
    return {
        name: Usage.of(member.process.pid) for name, member in cluster.members.items() if member.process is not None
    }


def growth(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> list[str]:
    """Return what has grown beyond its bound."""
    found = []
    for name, now in after.items():
        then = before[name]
        if now.memory_bytes > then.memory_bytes * _MEMORY_GROWTH + 16 * 2**20:
            found.append(f"{name}: {then.memory_bytes / 2**20:.0f} to {now.memory_bytes / 2**20:.0f} MiB")
        if now.open_files > then.open_files + _MORE_FILES:
            found.append(f"{name}: {then.open_files} to {now.open_files} open files")
    return found


async def load(
    client: httpx.AsyncClient, expected: Mapping[Request, str], dice: random.Random, until: float, outcomes: Outcomes
) -> None:
    """Ask again and again; every fourth time leave after a while."""
    while time.monotonic() < until:
        request = dice.choice(list(expected))
        if dice.random() < 0.25:
            asking = asyncio.create_task(ask(client, request))
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            outcomes.note("left")
        else:
            await judge(client, request, expected[request], outcomes)


async def run(seconds: float, seed: int, folder: Path | None = None) -> list[str]:
    """Return what is wrong afterwards; prints how things stand."""
    folder = folder or Path(tempfile.mkdtemp(prefix="soak-"))
    flags = ("--store-ttl-seconds", str(TTL_SECONDS))
    async with Cluster(folder, prefill=1, worker_flags=flags, decode_flags=("--kv-memory-gib", "0.5")) as cluster:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=None) as client:
            expected = {request: await ask(client, request) for request in requests(20, seed)}
            outcomes, dice = Outcomes(), random.Random(seed)

            async def under_load(share: float) -> dict[str, Usage]:
                until = time.monotonic() + share * seconds
                await asyncio.gather(*(load(client, expected, dice, until, outcomes) for _ in range(4)))
                return usage(cluster)

            before = await under_load(0.4)
            after = await under_load(0.6)
        for name in after:
            print(
                f"{name:10} {before[name].memory_bytes / 2**20:6.0f} -> {after[name].memory_bytes / 2**20:6.0f} MiB, "
                f"{before[name].open_files:3} -> {after[name].open_files:3} open files"
            )
        print(dict(outcomes.counts))
        wrong = [outcome for outcome in outcomes.counts if outcome not in {"right", "left"}]
        return [*growth(before, after), *(outcomes.troubles if wrong else []), *await leaks(cluster)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = asyncio.run(run(60 * arguments.minutes, arguments.seed))
    print("\n".join(wrong) or "nothing grows and nothing is left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
