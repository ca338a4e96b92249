"""Finds the addresses behind the workers' names: a name may have several, and they come and go."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to the host's IP addresses; raises OSError where it cannot tell."""

logger = logging.getLogger(__name__)


class SystemResolver:
    """Asks the system's resolver, which knows hosts files and DNS."""

    def __init__(self) -> None:
        # A thread of its own: while DNS is away it hangs there, and not in those that tokenise prompts.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the host's IP addresses; raises OSError where there are none."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._executor, ask)
        return [str(address[0]) for *_, address in found]


class Discovery:
    """What `host:port` entries stand for. An entry that cannot be resolved keeps the addresses it had."""

    def __init__(self, entries: Iterable[str], resolver: Resolver, timeout_seconds: float) -> None:
        self._names: list[tuple[str, int]] = []
        self._found: dict[tuple[str, int], list[str]] = {}
        self._failing: set[tuple[str, int]] = set()
        self._resolver = resolver
        self._timeout_seconds = timeout_seconds
        for entry in entries:
            host, _, port = entry.rpartition(":")
            name = (host.strip("[]"), int(port))
            self._found[name] = [name[0]] if _is_literal(name[0]) else []
            if not _is_literal(name[0]):
                self._names.append(name)

    @property
    def may_change(self) -> bool:
        """Whether there are names among the entries, rather than addresses only."""
        return bool(self._names)

    async def addresses(self) -> list[str]:
        """Return every address as `ip:port`, once, in the entries' order."""
        await asyncio.gather(*(self._resolve(name) for name in self._names))
        return list(dict.fromkeys(_join(host, port) for (_, port), hosts in self._found.items() for host in hosts))

    async def _resolve(self, name: tuple[str, int]) -> None:
        host, port = name
        try:
            async with asyncio.timeout(self._timeout_seconds):
                self._found[name] = sorted(await self._resolver(host, port))
        except (OSError, UnicodeError) as error:  # a host's name must fit IDNA, or encoding it fails
            if name not in self._failing:
                logger.warning("cannot resolve %s", host, extra={"error": str(error) or type(error).__name__})
            self._failing.add(name)
            return
        if name in self._failing:
            self._failing.discard(name)
            logger.info("%s is resolved again", host)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
