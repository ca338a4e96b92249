"""Whom a worker's server answers, and when it has enough."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.rpc import is_serving, open_channel, serve
from common.tls import Tls
from tests.certificates import Authority
from tests.gateway.conftest import free_port

HEALTH = health_pb2.HealthCheckRequest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def worker(authority: Authority) -> Tls:
    return authority.issue("127.0.0.1").tls()


@pytest.fixture(scope="module")
def gateway(authority: Authority) -> Tls:
    return authority.issue("gateway").tls()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Authority(tmp_path_factory.mktemp("stranger")).issue("gateway").tls()


@asynccontextmanager
async def serving(
    tls: Tls | None, max_rpcs: int = 100, makes_progress: Callable[[], bool] = lambda: True
) -> AsyncIterator[str]:
    """Run a server as the workers do; yield its address."""
    port, stop = free_port(), asyncio.Event()

    async def main_loop() -> None:
        await stop.wait()

    task = asyncio.create_task(
        serve(
            lambda _: None,
            main_loop(),
            host="127.0.0.1",
            port=port,
            grace_seconds=0,
            max_rpcs=max_rpcs,
            tls=tls,
            makes_progress=makes_progress,
        )
    )
    await asyncio.sleep(0.1)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        await task


async def is_answered(target: str, tls: Tls | None) -> bool:
    async with open_channel(target, tls) as channel:
        return await is_serving(channel, timeout_seconds=2)


async def test_plain_text_among_ourselves() -> None:
    async with serving(None) as target:
        assert await is_answered(target, None)


async def test_a_peer_of_the_same_authority_is_served(worker: Tls, gateway: Tls) -> None:
    async with serving(worker) as target:
        assert await is_answered(target, gateway)


async def test_a_peer_without_tls_is_not(worker: Tls) -> None:
    async with serving(worker) as target:
        assert not await is_answered(target, None)


async def test_a_peer_without_a_certificate_is_not(worker: Tls) -> None:
    credentials = grpc.ssl_channel_credentials(worker.authority)
    async with serving(worker) as target, grpc.aio.secure_channel(target, credentials) as channel:
        assert not await is_serving(channel, timeout_seconds=2)


async def test_a_peer_of_another_authority_is_not(worker: Tls, stranger: Tls) -> None:
    knows_us = Tls(stranger.certificate, stranger.key, worker.authority)
    async with serving(worker) as target:
        assert not await is_answered(target, knows_us)


async def test_a_worker_of_another_authority_is_not_believed(gateway: Tls, tmp_path: Path) -> None:
    impostor = Authority(tmp_path).issue("127.0.0.1").tls()
    knows_us = Tls(impostor.certificate, impostor.key, gateway.authority)
    async with serving(knows_us) as target:
        assert not await is_answered(target, gateway)


async def test_a_worker_must_carry_the_name_it_is_reached_by(authority: Authority, gateway: Tls) -> None:
    named = authority.issue("decode.internal").tls()
    async with serving(named) as target:
        assert not await is_answered(target, gateway)
        by_name = Tls(gateway.certificate, gateway.key, gateway.authority, "decode.internal")
        assert await is_answered(target, by_name)


async def test_calls_beyond_the_bound_are_refused() -> None:
    async with serving(None, max_rpcs=1) as target, open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(HEALTH)
        await watching.read()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Check(HEALTH)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watching.cancel()


async def test_metadata_beyond_the_bound_is_refused() -> None:
    async with serving(None) as target, open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(HEALTH, metadata=(("x-small", "x" * 1000),))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Check(HEALTH, metadata=(("x-large", "x" * 100_000),))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_worker_whose_step_hangs_is_passed_over_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.rpc._WATCH_SECONDS", 0.01)
    hangs = asyncio.Event()
    async with serving(None, makes_progress=lambda: not hangs.is_set()) as target, open_channel(target) as channel:
        assert await is_serving(channel, 2)
        hangs.set()
        async with asyncio.timeout(5):
            while await is_serving(channel, 2):
                await asyncio.sleep(0.01)
        hangs.clear()
        async with asyncio.timeout(5):
            while not await is_serving(channel, 2):
                await asyncio.sleep(0.01)
