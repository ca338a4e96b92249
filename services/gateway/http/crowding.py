"""Who has to go when there are too many connections: of the place that has most, whoever has waited longest."""

import ipaddress
from collections import Counter
from collections.abc import Collection
from typing import Protocol, TypeVar

_IPV6_CLIENT_BITS = 64
"""Whoever has one IPv6 address usually has all with these first bits."""


class Connection(Protocol):
    """A connection, as far as it matters here.

    Attributes:
        network: whose it is, as `network_of` has it.
        phase_began: when it began to be idle, to send, to be answered, or not to read (monotonic seconds).
    """

    network: str
    phase_began: float

    @property
    def is_worked_on(self) -> bool:
        """Whether its request has a place among those that are worked on, and its client reads."""


ConnectionT = TypeVar("ConnectionT", bound=Connection)


def network_of(address: str) -> str:
    """Return what connections from one place have in common: the address, or an IPv6 address' network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))


def to_close(connections: Collection[ConnectionT]) -> ConnectionT | None:
    """Return the connection that makes room; None if all are worked on.

    It is one of the place that has most connections, so whoever fills the server up pays for it.
    """
    counts = Counter(connection.network for connection in connections)
    waiting = (connection for connection in connections if not connection.is_worked_on)
    return max(waiting, key=lambda one: (counts[one.network], -one.phase_began), default=None)
