"""Workers come and go behind their names."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from common.errors import UnavailableError
from services.gateway.workers.discovery import Discovery, SystemResolver
from services.gateway.workers.routing import Worker, WorkerPool
from tests.gateway.conftest import ScriptedDecode, free_port, grpc_worker, until


class Names:
    """A resolver that is told what to find."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.error: Exception | None = None
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        assert host == "workers"
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.addresses


def discovery(*entries: str, names: Names) -> Discovery:
    return Discovery(entries, names, timeout_seconds=1)


async def test_every_address_of_a_name_is_a_worker() -> None:
    names = Names("10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1")
    found = await discovery("workers:50051", "10.0.0.9:1", "[::1]:2", names=names).addresses()
    assert found == ["10.0.0.1:50051", "10.0.0.2:50051", "[fd00::1]:50051", "10.0.0.9:1", "[::1]:2"]


async def test_addresses_are_not_looked_up() -> None:
    names = Names()
    fixed = discovery("10.0.0.9:1", "[::1]:2", names=names)
    assert not fixed.may_change
    assert await fixed.addresses() == ["10.0.0.9:1", "[::1]:2"]
    assert not names.asked


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "unknown"), OSError("away"), TimeoutError(), UnicodeError("label")]
)
async def test_what_cannot_be_resolved_stays_and_is_said_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="services.gateway.workers.discovery")
    names = Names("10.0.0.1")
    workers = discovery("workers:50051", names=names)
    await workers.addresses()
    names.error = error
    for _ in range(3):
        assert await workers.addresses() == ["10.0.0.1:50051"]
    names.error, names.addresses = None, ["10.0.0.2"]
    assert await workers.addresses() == ["10.0.0.2:50051"]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot resolve workers",
        "workers is resolved again",
    ]


async def test_a_resolver_that_hangs_counts_as_failed() -> None:
    async def hangs(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    assert await Discovery(["workers:1"], hangs, timeout_seconds=0.01).addresses() == []


async def test_the_systems_resolver() -> None:
    assert "127.0.0.1" in await SystemResolver()("localhost", 80)
    with pytest.raises(OSError):  # noqa: PT011  what it says is the system's
        await SystemResolver()("nowhere.invalid", 80)


@asynccontextmanager
async def pool_of(names: Names, port: int, interval_seconds: float = 0.05) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(
        "decode",
        [f"workers:{port}"],
        interval_seconds=interval_seconds,
        timeout_seconds=2,
        discovery_interval_seconds=interval_seconds,
        resolver=names,
    )
    async with pool:
        yield pool


async def found(pool: WorkerPool) -> list[str]:
    try:
        return sorted(worker.address for worker in await pool.candidates())
    except UnavailableError:
        return []


@pytest.fixture
async def two() -> AsyncIterator[int]:
    """Return the port on which workers serve at 127.0.0.1 and 127.0.0.2."""
    port = free_port()
    async with grpc_worker(ScriptedDecode(), port), grpc_worker(ScriptedDecode(), port, host="127.0.0.2"):
        yield port


async def test_new_workers_are_taken_in_and_vanished_ones_get_nothing(two: int) -> None:
    names = Names("127.0.0.1")
    async with pool_of(names, two) as pool:
        assert await found(pool) == [f"127.0.0.1:{two}"]
        names.addresses = ["127.0.0.1", "127.0.0.2"]

        async def both() -> bool:
            return len(await found(pool)) == 2

        await until(both)
        names.addresses = ["127.0.0.2"]

        async def only_the_second() -> bool:
            return await found(pool) == [f"127.0.0.2:{two}"]

        await until(only_the_second)


async def test_a_vanished_workers_channel_closes_with_its_last_request(two: int) -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    async with pool_of(names, two) as pool:
        leaving, staying = sorted(await pool.candidates(), key=lambda worker: worker.address)
        with pool.lease(leaving, 10):
            names.addresses = ["127.0.0.2"]

            async def gone() -> bool:
                return leaving.gone

            await until(gone)
            assert leaving.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN

        async def closed() -> bool:
            return is_closed(leaving)

        await until(closed)
        assert not is_closed(staying)


def is_closed(worker: Worker) -> bool:
    """Tell whether whoever still holds the worker is sent on to another."""
    try:
        assert worker.channel
    except UnavailableError:
        return True
    return False


async def test_who_finds_nobody_looks_at_the_names_at_once(two: int) -> None:
    names = Names()
    async with pool_of(names, two, interval_seconds=60) as pool:
        assert await found(pool) == []
        names.addresses = ["127.0.0.1"]
        assert await found(pool) == [f"127.0.0.1:{two}"]


async def test_a_name_with_an_address_where_nobody_listens(two: int) -> None:
    async with pool_of(Names("::1", "127.0.0.1"), two) as pool:
        assert await found(pool) == [f"127.0.0.1:{two}"]


async def test_no_worker_is_refused_by_kind() -> None:
    async with pool_of(Names(), 1) as pool:
        with pytest.raises(UnavailableError, match=r"^no decode worker is serving$"):
            await pool.candidates()
