"""Workers' metrics, over real sockets: whoever holds connections keeps no scrape out, and takes no threads."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from common.metrics_server import serving_metrics
from tests.gateway.conftest import free_port

SCRAPE = b"GET /metrics HTTP/1.1\r\n\r\n"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    registry, port = CollectorRegistry(), free_port()
    Counter("things", "Things", registry=registry).inc(3)
    async with serving_metrics(registry, "127.0.0.1", port):
        yield port


async def test_a_scrape(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        answer = await http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert "things_total 3.0" in answer.text
        head = await http.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))
        assert (await http.get("/other")).status_code == 404
        assert (await http.post("/metrics")).status_code == 405


async def test_idle_connections_take_no_threads_and_keep_nobody_out(port: int) -> None:
    threads = threading.active_count()
    async with AsyncExitStack() as stack:
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        assert threading.active_count() <= threads  # those of others may end meanwhile
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            assert (await http.get("/metrics")).status_code == 200


def connected(port: int, sent: bytes = b"") -> socket.socket:
    """Return a connection over which something was sent before the loop could have taken it."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(sent)
    connection.setblocking(False)
    return connection


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nX:", SCRAPE * 100])
async def test_a_scrape_in_a_flood_of_connections(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(port, sent))
        scrape = stack.enter_context(connected(port, SCRAPE))
        for _ in range(100):
            stack.enter_context(connected(port, sent))
        reader, writer = await asyncio.open_connection(sock=scrape)
        async with asyncio.timeout(20):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def test_a_flood_is_taken_a_few_at_a_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.metrics_server._PAUSE_SECONDS", 3600.0)
    before = len(asyncio.all_tasks())
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(port))
        for _ in range(100):
            await asyncio.sleep(0)
        assert 1 <= len(asyncio.all_tasks()) - before <= 8


async def test_what_runs_at_the_end_is_ended() -> None:
    port = free_port()
    async with serving_metrics(CollectorRegistry(), "127.0.0.1", port):
        waiting = connected(port)
        await asyncio.sleep(0.1)
    with waiting:
        assert waiting.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connected(port)


async def test_a_head_without_an_end_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.metrics_server._SECONDS", 0.2)
    for sent in (b"GET /metrics HTTP/1.1\r\nX:", b"x" * 100_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_rubbish_is_refused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"rubbish\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_without_a_port_nothing_is_served() -> None:
    async with serving_metrics(CollectorRegistry(), "127.0.0.1", None):
        pass
