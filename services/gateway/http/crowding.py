"""Who has to go when there are too many connections: somebody who keeps the gateway waiting, of those who have most."""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

_IPV6_CLIENT_BITS = 64
"""Whoever has one IPv6 address usually has all with these first bits."""


class Waiting(Protocol):
    """A connection, as far as it matters here.

    Attributes:
        network: whose it is, as `network_of` has it.
        owed_since: since when the gateway waits for its client (monotonic seconds); None while the client waits.
        is_idle: whether no request has begun.
    """

    network: str

    @property
    def owed_since(self) -> float | None:
        """Return it."""

    @property
    def is_idle(self) -> bool:
        """Return it."""


WaitingT = TypeVar("WaitingT", bound=Waiting)


def network_of(address: str) -> str:
    """Return what connections from one place have in common: the address, or an IPv6 address' network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))


def to_close(connections: Iterable[WaitingT]) -> WaitingT | None:
    """Return the connection that makes room: idle ones first, then those that let the gateway wait longest.

    It is one of the place that has most connections, so whoever fills the server up pays for it. None if all clients
    wait for their answers.
    """
    waiting = [(connection, since) for connection in connections if (since := connection.owed_since) is not None]
    counts = Counter(connection.network for connection in connections)
    if not waiting:
        return None
    found, _ = max(waiting, key=lambda entry: (counts[entry[0].network], entry[0].is_idle, -entry[1]))
    return found
