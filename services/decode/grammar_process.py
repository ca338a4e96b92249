"""The worker's ends of the grammar server, and of the process that follows one grammar."""

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from common.errors import GrammarError, StructKVError, UnavailableError

logger = logging.getLogger(__name__)

_FRAME = struct.Struct("<II")
_GONE = (OSError, struct.error)
"""What is raised where the server is no more."""
_QUICK_SECONDS = 0.2
_MAX_SECONDS = 3.0
"""Of a processor, that one piece of a grammar's work may take: to compile it, or a token."""
_PIECE_SECONDS = 0.01
"""What a piece may take for good. What is beyond it adds up, and that must not be more than _QUICK_SECONDS either."""


class GrammarServer:
    """The process that grammars' processes are forked from. It ends with the worker, and is started again if it must.

    Attributes:
        obstacle: why it cannot serve, if so.
        eos_token_ids: tokens by which an answer ends where its grammar may.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Start it with a model's tokenizer and wait until it is ready."""
        self._arguments = [str(folder), str(vocab_size)]
        self._lock = threading.Lock()
        self.obstacle = ""
        self.eos_token_ids: list[int] = []
        self._start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def fork(self) -> "GrammarProcess":
        """Return a new process; raise UnavailableError if there can be none."""
        ours, theirs = socket.socketpair()
        pid = await asyncio.to_thread(self._fork, theirs)
        return GrammarProcess(pid, *await asyncio.open_unix_connection(sock=ours))

    def close(self) -> None:
        """End it; what was forked from it ends with its own connection."""
        self._control.close()
        self._process.wait()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-m", "services.decode.grammar_server", str(theirs.fileno()), *self._arguments]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own program
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        try:
            hello = self._read()
        except _GONE as error:
            raise UnavailableError("the grammar server does not start; its own words are above") from error
        self.obstacle, self.eos_token_ids = hello.get("obstacle", ""), hello.get("eos_token_ids", [])
        if self.obstacle:
            extra = {"reason": self.obstacle}
            logger.warning("no grammars: structured answers and forced tools are refused", extra=extra)

    def _fork(self, connection: socket.socket) -> int:
        """Return the id of a new process that serves a connection."""
        with connection, self._lock:
            try:
                return self._ask(connection)
            except _GONE:
                logger.error("the grammar server has ended, and is started again")
                self.close()
                self._start()
                return self._ask(connection)

    def _ask(self, connection: socket.socket) -> int:
        socket.send_fds(self._control, [b"f"], [connection.fileno()])
        pid: int = self._read()["pid"]
        return pid

    def _read(self) -> dict[str, Any]:
        head = self._control.recv(_FRAME.size, socket.MSG_WAITALL)
        text = self._control.recv(_FRAME.unpack(head)[0], socket.MSG_WAITALL)
        message: dict[str, Any] = json.loads(text)
        return message


class GrammarProcess:
    """One grammar's process. What it is asked, it is asked in turn.

    Attributes:
        num_users: requests that have answers in it.
        idle_since: when the last of them ended, monotonic.
        brought_by: the client of the first of them, for whom it counts; None while nobody uses it.
        is_slow: whether a piece of its work, or all of it together, has taken long; it then runs when nothing else
            wants to. A step of several threads waits for the last of them, so that one that is kept from its processor
            now and then makes it many times as long.
    """

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)  # a number may be another process's by the time that it is used
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._end: StructKVError | None = None
        self._seconds_before = 0.0  # of its processor time, when it was asked
        self._seconds_owed = 0.0
        self._asking: set[asyncio.Task[tuple[dict[str, Any], bytes]]] = set()
        self.num_users = 0
        self.idle_since = 0.0
        self.brought_by: int | None = None
        self.is_slow = False

    @property
    def has_ended(self) -> bool:
        """Whether it is no more."""
        return self._end is not None or self._reader.at_eof()

    async def ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return a reply and the masks behind it; GrammarError if it takes too long, or the process has ended.

        Who no longer waits for a reply leaves it behind: it is read all the same, before the next one.
        """
        return await asyncio.shield(self._begin(message))

    def _begin(self, message: dict[str, Any]) -> "asyncio.Task[tuple[dict[str, Any], bytes]]":
        asking = asyncio.create_task(self._ask_in_turn(message))
        self._asking.add(asking)  # the loop itself keeps no hold of tasks
        asking.add_done_callback(self._forget)
        return asking

    def _forget(self, asking: "asyncio.Task[tuple[dict[str, Any], bytes]]") -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # that nobody waits for it any more is no error

    async def _ask_in_turn(self, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        async with self._lock:
            if self._end is not None:
                raise self._end
            exchange = asyncio.ensure_future(self._exchange(message))
            await self._watch(exchange)
            return await exchange

    def close(self, numbers: list[int]) -> None:
        """Have it forget answers."""
        self._begin({"close": numbers})

    def kill(self, error: StructKVError) -> None:
        """End the process; whoever has answers in it gets the error."""
        if self._end is not None:
            return
        self._end = error
        self._writer.close()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)

    async def _exchange(self, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        text = json.dumps(message).encode()
        try:
            self._writer.write(_FRAME.pack(len(text), 0) + text)
            await self._writer.drain()
            text_bytes, mask_bytes = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
            reply = json.loads(await self._reader.readexactly(text_bytes))
            self._account(reply["seconds"])
            return reply, await self._reader.readexactly(mask_bytes)
        except (OSError, asyncio.IncompleteReadError):
            self.kill(GrammarError("the grammar is too much: the process that followed it has ended"))
            assert self._end is not None
            raise self._end from None

    async def _watch(self, exchange: "asyncio.Future[tuple[dict[str, Any], bytes]]") -> None:
        """Wait for a reply. Who takes long has to let all others go first, who takes very long is ended."""
        done, _ = await asyncio.wait([exchange], timeout=_QUICK_SECONDS)
        while not done:
            taken = self._cpu_seconds() - self._seconds_before
            if taken > _MAX_SECONDS:
                self.kill(GrammarError("the grammar takes too long"))
            elif taken > _QUICK_SECONDS:
                self._give_way()
            done, _ = await asyncio.wait([exchange], timeout=_QUICK_SECONDS)

    def _account(self, seconds: float) -> None:
        """Note how much processor time it has had in all."""
        taken, self._seconds_before = seconds - self._seconds_before, seconds
        self._seconds_owed = max(self._seconds_owed + taken - _PIECE_SECONDS, 0.0)
        if self._seconds_owed > _QUICK_SECONDS:
            self._give_way()

    def _give_way(self) -> None:
        """Let it run only when nothing else wants to."""
        if not self.is_slow:
            self.is_slow = True
            with suppress(ProcessLookupError):
                os.sched_setscheduler(self._pid, os.SCHED_IDLE, os.sched_param(0))

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)
