"""Addresses: which of them only this machine reaches, how a host and a port are joined, and which are taken."""

import errno
import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`. A name other than localhost is taken to be reached by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(host: str, port: int) -> str:
    """Join host and port; an IPv6 address goes into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_free(host: str, port: int) -> None:
    """Raise OSError, which says why, unless a server can listen here now: asked before a start that takes long."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    obstacles = [_obstacle(family, where) for family, *_, where in found]
    for obstacle in obstacles:
        # Of a name's addresses a server may do without those that this machine does not have.
        if obstacle is not None and (obstacle.errno == errno.EADDRINUSE or None not in obstacles):
            raise _cannot_listen(host, port, obstacle) from obstacle


def _obstacle(family: int, where: tuple[object, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(where)
    except OSError as error:
        return error
    return None


def _cannot_listen(host: str, port: int, error: OSError) -> OSError:
    return OSError(f"cannot listen on {address(host, port)}: {(error.strerror or str(error)).lower()}")
