"""Knows the workers: who there is, who is serving, and who has the least to do."""

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from types import TracebackType
from typing import Self

from common.errors import NoWorkerError
from common.rpc import Health, check_health
from common.tls import Tls
from services.gateway.workers.discovery import Discovery, Resolver, SystemResolver
from services.gateway.workers.worker import Lease, Worker

logger = logging.getLogger(__name__)


class WorkerPool:
    """The workers of one kind. Enter it inside the running event loop: it opens channels, polls health and names."""

    def __init__(
        self,
        kind: str,
        entries: Sequence[str],
        *,
        interval_seconds: float,
        timeout_seconds: float,
        discovery_interval_seconds: float = 5.0,
        resolver: Resolver | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Take `host:port` entries, whose hosts may be names of several workers, and how often to look."""
        self.kind = kind
        self._tls = tls
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._discovery_interval_seconds = discovery_interval_seconds
        self._discovery = Discovery(entries, resolver or SystemResolver(), timeout_seconds)
        self._turns = itertools.count(1)
        self._workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._round: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Find the workers, look which are serving, and go on watching."""
        await self.check_all()
        if self._discovery.may_change:
            self._spawn(self._discover())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching and close the channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))

    @property
    def any_healthy(self) -> bool:
        """Whether at least one worker is known to serve."""
        return any(worker.healthy for worker in self._workers.values())

    def count(self, *, healthy: bool) -> int:
        """Return how many workers are known to serve, or not to."""
        return sum(worker.healthy == healthy for worker in self._workers.values())

    async def candidates(self) -> list[Worker]:
        """Return the healthy workers, least busy first; those that fail where others do not come last.

        If none is known, names are resolved and all are asked once more, so that one which just came up is not
        refused. Raises NoWorkerError if that finds none either.
        """
        if not self.any_healthy:
            await self.check_all()
        healthy = [worker for worker in self._workers.values() if worker.healthy]
        if not healthy:
            raise NoWorkerError(f"no {self.kind} worker is serving")
        return sorted(healthy, key=lambda worker: worker.rank)

    @contextmanager
    def lease(self, worker: Worker, tokens: int) -> Iterator[Lease]:
        """Count tokens as the worker's for as long as the context lasts."""
        lease = Lease()
        worker.breaker.asked()
        worker.last_chosen = next(self._turns)
        worker.in_flight_tokens += tokens
        worker.leases.add(lease)
        try:
            with self._using(worker):
                yield lease
        finally:
            worker.leases.remove(lease)
            worker.in_flight_tokens -= tokens

    def mark_unreachable(self, worker: Worker) -> None:
        """Leave a worker out until its next good health check."""
        self._set_health(worker, healthy=False)

    async def check_all(self) -> None:
        """Resolve the names and ask every worker whether it serves, now."""
        # Requests that wait at the same time share one round; a client that leaves does not end it for the others.
        if self._round is None or self._round.done():
            self._round = self._spawn(self._look_once())
        await asyncio.shield(self._round)

    async def _look_once(self) -> None:
        await self._update()
        await self._check_each(list(self._workers.values()))

    async def _discover(self) -> None:
        while True:
            await asyncio.sleep(self._discovery_interval_seconds)
            await self._check_each(await self._update())

    async def _update(self) -> list[Worker]:
        """Let go of the addresses that have vanished, take in the new ones and return those."""
        addresses = await self._discovery.addresses()
        for address in self._workers.keys() - set(addresses):
            worker = self._workers.pop(address)
            worker.gone = True
            logger.info("worker has left", extra={"kind": self.kind, "worker": address})
            self._close_unused(worker)
        new = [Worker(address, self._tls) for address in addresses if address not in self._workers]
        for worker in new:
            self._workers[worker.address] = worker
            self._spawn(self._watch(worker))
        return new

    async def _watch(self, worker: Worker) -> None:
        pause = self._interval_seconds
        while not worker.gone:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            await self._check(worker)
            pause = max(0.0, asked + self._interval_seconds - time.monotonic())

    async def _check_each(self, workers: Sequence[Worker]) -> None:
        await asyncio.gather(*(self._check(worker) for worker in workers))

    async def _check(self, worker: Worker) -> None:
        if worker.gone:
            return
        asked = time.monotonic()
        with self._using(worker):
            health = await check_health(worker.channel, self._timeout_seconds)
        if worker.gone:
            return
        self._set_health(worker, healthy=health is Health.SERVING)
        hopeless = worker.checked(health, asked, self._timeout_seconds)
        if hopeless and self.any_healthy:  # with nobody else to ask, what can be hoped for is this worker
            logger.warning(
                "worker is given up",
                extra={"kind": self.kind, "worker": worker.address, "health": health.value, "calls": len(hopeless)},
            )
            for lease in hopeless:
                lease.give_up()

    def _set_health(self, worker: Worker, *, healthy: bool) -> None:
        if worker.healthy != healthy:
            state = "serving" if healthy else "not serving"
            logger.info("worker is %s", state, extra={"kind": self.kind, "worker": worker.address})
        worker.healthy = healthy

    @contextmanager
    def _using(self, worker: Worker) -> Iterator[None]:
        """Keep the channel open; the last one to use a worker that is gone closes it."""
        worker.num_users += 1
        try:
            yield
        finally:
            worker.num_users -= 1
            self._close_unused(worker)

    def _close_unused(self, worker: Worker) -> None:
        if worker.gone and not worker.num_users:
            self._spawn(worker.close())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # Of a context of its own: the request that happened to find a worker is over long before the worker is.
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
