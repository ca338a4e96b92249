"""Who has to go when there are too many connections: of the network that has most, whoever has waited longest."""

import ipaddress
import logging
import time
from typing import Protocol

_IPV6_CLIENT_BITS = 64
"""Whoever has one IPv6 address usually has all with these first bits."""

_LOG_SECONDS = 1.0

logger = logging.getLogger(__name__)


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

    def abort(self) -> None:
        """Close it at once."""


class Crowd:
    """The open connections by network, of each in the order in which their phases began.

    One network may open thousands in a second, so room is made without a look at all that it has.
    """

    def __init__(self, most: int) -> None:
        """Take how many there may be."""
        self._most = most
        self._by_network: dict[str, dict[Connection, None]] = {}
        self._num_closed = 0
        self._logged_at = -_LOG_SECONDS
        self.size = 0

    def enter(self, connection: Connection) -> None:
        """Take a connection in, if need be in the place of another one, which is closed."""
        self._by_network.setdefault(connection.network, {})[connection] = None
        self.size += 1
        if self.size > self._most and (leaving := self.make_room()) is not None:
            leaving.abort()

    def begins_phase(self, connection: Connection) -> None:
        """Have a connection be the last of its network, if it is still there."""
        connections = self._by_network.get(connection.network, {})
        if connection in connections:
            connections[connection] = connections.pop(connection)

    def leave(self, connection: Connection) -> None:
        """Forget a connection, if it is still there."""
        connections = self._by_network.get(connection.network, {})
        if connection in connections:
            self.size -= 1
            del connections[connection]
            if not connections:
                del self._by_network[connection.network]

    def make_room(self) -> Connection | None:
        """Return the connection to close, which is forgotten; None if all are worked on.

        It is one of the network that has most connections, so whoever fills the server up pays for it.
        """
        leaving = self._longest_waiting()
        if leaving is not None:
            self.leave(leaving)
            self._log_closed()
        return leaving

    def _longest_waiting(self) -> Connection | None:
        found, most = None, 0
        for connections in sorted(self._by_network.values(), key=len, reverse=True):
            if len(connections) < most:
                break
            waiting = next((one for one in connections if not one.is_worked_on), None)
            if waiting is not None and (found is None or waiting.phase_began < found.phase_began):
                found, most = waiting, len(connections)
        return found

    def _log_closed(self) -> None:
        self._num_closed += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            logger.warning("too many connections", extra={"closed": self._num_closed, "open": self.size})
            self._num_closed, self._logged_at = 0, now


def network_of(address: str) -> str:
    """Return what connections from one place have in common: the address, or an IPv6 address' network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))
