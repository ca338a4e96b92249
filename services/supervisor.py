"""Child processes that are kept running: started, watched, restarted, stopped."""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 10.0
_STEADY_SECONDS = 30.0
_STOP_SECONDS = 40.0
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1

Report = Callable[[str], None]


class StartError(Exception):
    """A child ended before it was ready for the first time."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process to run: its name for people, its command, how to ask whether it is ready, and secrets for it."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class Supervisor:
    """Runs services as child processes until it is left; a context manager."""

    def __init__(self, report: Report) -> None:
        """Take where to report what happens to the children."""
        self._report = report
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for process in reversed(self._processes.values()):  # whoever asks goes before whoever answers
            await _stop(process)

    async def start(self, service: Service) -> None:
        """Start a service and wait until it is ready, then keep it running.

        Raises StartError if it ends before.
        """
        process = await self._spawn(service)
        while not await service.is_ready():
            if process.returncode is not None:
                raise StartError(f"{service.name} could not start ({_ending(process.returncode)})")
            await asyncio.sleep(_POLL_SECONDS)
        self._report(f"{service.name} is ready")
        self._watchers.append(asyncio.create_task(self._keep_running(service, process)))

    async def _spawn(self, service: Service) -> asyncio.subprocess.Process:
        # In a session of its own: a Ctrl-C in the terminal is ours to pass on, in order.
        process = await asyncio.create_subprocess_exec(
            *service.command,
            env={**os.environ, **service.environment},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._processes[service.name] = process
        return process

    async def _keep_running(self, service: Service, process: asyncio.subprocess.Process) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            started = time.monotonic()
            code = await process.wait()
            if time.monotonic() - started > _STEADY_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            self._report(f"{service.name} ended ({_ending(code)}), starting it again")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
            process = await self._spawn(service)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _die_with_parent() -> None:
    """Have the kernel end this child when the supervisor is killed and cannot do it (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
