"""Requests go where there is least to do, and nowhere that is known to be down."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from common.errors import UnavailableError
from services.gateway.workers.routing import WorkerPool
from tests.gateway.conftest import free_port, grpc_worker, until


def pool_of(*addresses: str, interval_seconds: float = 60) -> WorkerPool:
    return WorkerPool("decode", addresses, interval_seconds=interval_seconds, timeout_seconds=2)


@pytest.fixture
async def two() -> AsyncIterator[tuple[str, str]]:
    async with grpc_worker() as first, grpc_worker() as second:
        yield first, second


async def addresses(pool: WorkerPool) -> list[str]:
    return [worker.address for worker in await pool.candidates()]


async def test_the_least_busy_worker_is_first(two: tuple[str, str]) -> None:
    async with pool_of(*two) as pool:
        first, second = sorted(await pool.candidates(), key=lambda worker: two.index(worker.address))
        with pool.lease(first, 100), pool.lease(second, 50):
            assert await addresses(pool) == [second.address, first.address]
            with pool.lease(second, 60):
                assert await addresses(pool) == [first.address, second.address]
        assert first.in_flight_tokens == second.in_flight_tokens == 0


async def test_idle_workers_take_turns(two: tuple[str, str]) -> None:
    async with pool_of(*two) as pool:
        chosen = []
        for _ in range(4):
            worker = (await pool.candidates())[0]
            chosen.append(worker.address)
            with pool.lease(worker, 1):
                pass
        assert chosen[0] != chosen[1]
        assert chosen[:2] == chosen[2:]


async def test_unhealthy_workers_are_left_out(two: tuple[str, str]) -> None:
    async with pool_of(*two, f"127.0.0.1:{free_port()}") as pool:
        assert sorted(await addresses(pool)) == sorted(two)


async def test_an_unreachable_worker_is_out_until_its_next_good_check(two: tuple[str, str]) -> None:
    async with pool_of(*two, interval_seconds=0.2) as pool:
        first, second = await pool.candidates()
        pool.mark_unreachable(first)
        assert await addresses(pool) == [second.address]

        async def is_back() -> bool:
            return first.healthy

        await until(is_back)


async def test_no_worker_is_refused_at_once_and_by_kind() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with pool_of(address) as pool, asyncio.timeout(2):
        with pytest.raises(UnavailableError, match=r"^no decode worker is serving$"):
            await pool.candidates()


async def test_a_worker_that_came_up_since_the_last_check_is_found() -> None:
    port = free_port()
    async with pool_of(f"127.0.0.1:{port}") as pool:
        with pytest.raises(UnavailableError):
            await pool.candidates()
        async with grpc_worker(port=port) as address:
            await asyncio.sleep(0.5)  # the channel's reconnect backoff
            assert await addresses(pool) == [address]


async def test_a_client_that_leaves_does_not_end_the_check_for_others() -> None:
    async with grpc_worker() as address, pool_of(address) as pool:
        leaving = asyncio.create_task(pool.candidates())
        staying = asyncio.create_task(pool.candidates())
        await asyncio.sleep(0)
        leaving.cancel()
        assert [worker.address for worker in await staying] == [address]
