"""Knows the workers: who is serving, and who has the least to do."""

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from common.errors import UnavailableError
from common.rpc import is_serving, open_channel
from common.tls import Tls

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Worker:
    """One worker as the gateway sees it.

    Attributes:
        address: host:port.
        channel: open as long as the pool is.
        healthy: whether its last health check was good and no call has failed to reach it since.
        in_flight_tokens: tokens of the requests that it is busy with.
        last_chosen: rises with every lease of the pool; among equals the one idle longest is next.
    """

    address: str
    channel: grpc.aio.Channel
    healthy: bool = False
    in_flight_tokens: int = 0
    last_chosen: int = 0


class WorkerPool:
    """The workers of one kind. Enter it inside the running event loop: it opens channels and polls health."""

    def __init__(
        self,
        kind: str,
        addresses: Sequence[str],
        *,
        interval_seconds: float,
        timeout_seconds: float,
        tls: Tls | None = None,
    ) -> None:
        self.kind = kind
        self._tls = tls
        self._addresses = tuple(addresses)
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._turns = itertools.count(1)
        self._workers: list[Worker] = []
        self._monitors: list[asyncio.Task[None]] = []
        self._recheck: asyncio.Future[list[None]] | None = None

    async def __aenter__(self) -> Self:
        """Open the channels, look who is there, and go on watching."""
        self._workers = [Worker(address, open_channel(address, self._tls)) for address in self._addresses]
        await self.check_all()
        self._monitors = [asyncio.create_task(self._watch(worker)) for worker in self._workers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching and close the channels."""
        for monitor in self._monitors:
            monitor.cancel()
        await asyncio.gather(*self._monitors, return_exceptions=True)
        await asyncio.gather(*(worker.channel.close() for worker in self._workers))

    @property
    def any_healthy(self) -> bool:
        """Whether at least one worker is known to serve."""
        return any(worker.healthy for worker in self._workers)

    async def candidates(self) -> list[Worker]:
        """Return the healthy workers, least busy first.

        If none is known, each is asked once more, so that one which just came up is not refused.
        Raises UnavailableError if that finds none either.
        """
        if not self.any_healthy:
            await self.check_all()
        healthy = [worker for worker in self._workers if worker.healthy]
        if not healthy:
            raise UnavailableError(f"no {self.kind} worker is serving ({', '.join(self._addresses)})")
        return sorted(healthy, key=lambda worker: (worker.in_flight_tokens, worker.last_chosen))

    @contextmanager
    def lease(self, worker: Worker, tokens: int) -> Iterator[None]:
        """Count tokens as the worker's for as long as the context lasts."""
        worker.last_chosen = next(self._turns)
        worker.in_flight_tokens += tokens
        try:
            yield
        finally:
            worker.in_flight_tokens -= tokens

    def mark_unreachable(self, worker: Worker) -> None:
        """Leave a worker out until its next good health check."""
        self._set_health(worker, healthy=False)

    async def check_all(self) -> None:
        """Ask every worker now whether it serves."""
        # Requests that wait at the same time share one round; a client that leaves does not end it for the others.
        if self._recheck is None or self._recheck.done():
            self._recheck = asyncio.gather(*(self._check(worker) for worker in self._workers))
        await asyncio.shield(self._recheck)

    async def _watch(self, worker: Worker) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self._check(worker)

    async def _check(self, worker: Worker) -> None:
        self._set_health(worker, healthy=await is_serving(worker.channel, self._timeout_seconds))

    def _set_health(self, worker: Worker, *, healthy: bool) -> None:
        if worker.healthy != healthy:
            state = "serving" if healthy else "not serving"
            logger.info("worker is %s", state, extra={"kind": self.kind, "worker": worker.address})
        worker.healthy = healthy
