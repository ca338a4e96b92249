"""An attacker, in a process of its own and with the least priority: its own CPU time is not what is measured."""

import asyncio
import multiprocessing
import os
import resource
from collections import Counter
from multiprocessing.connection import Connection
from typing import Self

from benchmarks.attack.catalogue import ATTACKS
from benchmarks.attack.wire import Tally, Target

_LEAST_PRIORITY = 19
_END_SECONDS = 20.0


class Attacker:
    """Prepares one attack; a context manager, at whose end the process is gone."""

    def __init__(self, name: str, target: Target) -> None:
        """Return when it is ready to start."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(name, target, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def start(self) -> None:
        """Let it go."""
        self._pipe.send("start")

    def stop(self) -> Tally:
        """End the attack, its connections with it; return what it got."""
        self._pipe.send("stop")
        return self._pipe.recv() if self._pipe.poll(_END_SECONDS) else Counter({"attacker hung": 1})


def _main(name: str, target: Target, pipe: Connection) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack = ATTACKS[name](target)
    pipe.send("ready")
    pipe.recv()
    os.nice(_LEAST_PRIORITY)
    tally: Tally = Counter()

    async def run() -> None:
        attacking = asyncio.ensure_future(attack(tally))
        asyncio.get_running_loop().add_reader(pipe.fileno(), attacking.cancel)
        await asyncio.gather(attacking, return_exceptions=True)

    asyncio.run(run())
    pipe.recv()  # an attack may have ended before
    pipe.send(tally)
