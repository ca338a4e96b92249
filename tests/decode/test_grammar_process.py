"""When a grammar's process has to let all others go first."""

import asyncio
import json
import os
import signal
import socket
import struct

import pytest

from common.errors import GrammarError
from services.decode.grammar_process import GrammarProcess


async def account(process: GrammarProcess, peer: asyncio.StreamWriter, seconds: float, number: int) -> None:
    """Have a process be asked so many times; each time its whole processor time has grown by so many seconds."""
    for asked in range(1, number + 1):
        reply = json.dumps({"seconds": seconds * asked}).encode()
        peer.write(struct.pack("<II", len(reply), 0) + reply)
        await process.ask({})


@pytest.mark.parametrize(
    ("seconds", "number", "policy"), [(0.02, 30, os.SCHED_IDLE), (0.02, 10, os.SCHED_OTHER), (0.01, 90, os.SCHED_OTHER)]
)
async def test_a_grammar_that_takes_long_in_many_pieces_gives_way_to_all_others(
    seconds: float, number: int, policy: int
) -> None:
    ours, theirs = socket.socketpair()
    _, peer = await asyncio.open_unix_connection(sock=theirs)
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    process = GrammarProcess(sleeper.pid, *await asyncio.open_unix_connection(sock=ours))
    await account(process, peer, seconds, number)
    assert os.sched_getscheduler(sleeper.pid) == policy
    process.kill(GrammarError("ended"))
    assert await sleeper.wait() == -signal.SIGKILL
    peer.close()
