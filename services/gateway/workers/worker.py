"""One worker as the gateway sees it, and the calls that it has there."""

import math
import time
from collections.abc import Callable

import grpc

from common.breaker import Breaker
from common.errors import UnavailableError
from common.rpc import Health, open_channel
from common.tls import Tls

_NOT_SERVING_SECONDS = 10.0
"""A worker that answers and does not serve may be draining, and then still computes a prompt without a word."""


class Lease:
    """A request's hold on a worker.

    Attributes:
        heard: when the worker last said something of the request (monotonic).
        given_up: whether the pool has given the worker up, and ended the call.
    """

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self.given_up = False
        self._end: Callable[[], object] | None = None

    def on_given_up(self, end: Callable[[], object]) -> None:
        """Say how to end the call that runs, in case the worker is given up. Without that the request keeps it."""
        self._end = end

    @property
    def may_be_given_up(self) -> bool:
        """Whether there is a call to end."""
        return self._end is not None and not self.given_up

    def give_up(self) -> None:
        """End the call."""
        self.given_up = True
        if self._end is not None:
            self._end()


class Worker:
    """One worker as the gateway sees it.

    Attributes:
        address: ip:port.
        healthy: whether its last health check was good and no call has failed to reach it since.
        in_flight_tokens: tokens of the requests that it is busy with.
        last_chosen: rises with every lease of the pool; among equals the one idle longest is next.
        breaker: whether it is asked after the others, since it failed where they did not.
        leases: of the requests that it is busy with.
        num_users: requests and health checks that use the channel now.
        gone: whether its address is no longer among the pool's.
    """

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self.address = address
        self.healthy = False
        self.in_flight_tokens = 0
        self.last_chosen = 0
        self.breaker = Breaker()
        self.leases: set[Lease] = set()
        self.num_users = 0
        self.gone = False
        self._failing_since = math.inf
        self._channel: grpc.aio.Channel | None = open_channel(address, tls)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to it; raises UnavailableError if it was closed since the worker was a candidate."""
        if self._channel is None:
            raise UnavailableError(f"the worker at {self.address} is gone")
        return self._channel

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Its place among those that may be asked: the lowest is the first."""
        return self.breaker.resting, self.in_flight_tokens, self.last_chosen

    def checked(self, health: Health, asked: float, timeout_seconds: float) -> list[Lease]:
        """Take the outcome of a health check that began at `asked`; return the calls that there is no hope for.

        Those are the ones that the worker has said nothing of, for as long as it has failed its checks: for two that
        timed out in a row. A late answer to one check is no reason, nor is a check that fails while tokens come.
        """
        if health in {Health.SERVING, Health.FULL}:
            self._failing_since = math.inf
            return []
        self._failing_since = min(self._failing_since, asked)
        patience = 2 * timeout_seconds if health is Health.UNREACHABLE else _NOT_SERVING_SECONDS
        silent_since = time.monotonic() - patience
        if self._failing_since > silent_since:
            return []
        return [lease for lease in self.leases if lease.may_be_given_up and lease.heard <= silent_since]

    async def close(self) -> None:
        """Close the channel. May be called again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
