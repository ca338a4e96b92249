"""A real server for the store, and stores on it."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from common.transport.redis_store import RedisStore
from services import embedded_store

TTL_SECONDS = 60.0


class StoreServer:
    """A Valkey server of its own process on a port that stays the same."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port = held.getsockname()[1]
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [*embedded_store.command(self.port, 256), *self._options]
        command[0] = os.environ.get("STORE_SERVER", command[0])  # such as redis-server
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self._listens():
            assert self._process.poll() is None, "the server ended"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def _server() -> Iterator[StoreServer]:
    server = StoreServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_server: StoreServer) -> StoreServer:
    """Return a running, empty server; a test may kill it and start it again."""
    if not _server.is_running:
        _server.start()
    with BlockingRedis(port=_server.port) as client:
        client.flushall()
    return _server


@pytest.fixture
async def client(server: StoreServer) -> AsyncIterator[Redis]:
    """Return a plain client that sees what the store does."""
    async with Redis(port=server.port) as client:
        yield client


@asynccontextmanager
async def open_store(server: StoreServer, max_bytes: int = 64 << 20) -> AsyncIterator[RedisStore]:
    store = RedisStore.open(server.url, ttl_seconds=TTL_SECONDS, max_bytes=max_bytes)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(server: StoreServer) -> AsyncIterator[RedisStore]:
    async with open_store(server) as store:
        yield store


async def until_no_layers(client: Redis) -> None:
    """Wait until no layer is stored; fail if that does not come."""
    async with asyncio.timeout(10):
        while await client.keys("structkv:layer:*"):
            await asyncio.sleep(0.01)
