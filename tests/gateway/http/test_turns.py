"""What a connection has ready at once, others are answered after a few turns of it: turns are counted, no time."""

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from services.gateway.http.protocol import BoundedProtocol
from services.gateway.http.strict_http import StrictConnection
from services.gateway.http.turns import Turns
from tests.certificates import Authority
from tests.gateway.conftest import Gateway, listening, until
from tests.gateway.http.sockets import BODY, HEALTH, Client, asking, head, reachable

METRICS = b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n"
CHUNKED = head("Transfer-Encoding: chunked")
FEW = 20


def bytewise(body: bytes) -> bytes:
    """Return a body in chunks of one byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[BoundedProtocol]:
    """Return whose request was answered, one after the other."""
    whose: list[BoundedProtocol] = []
    original = BoundedProtocol.on_response_complete

    def note(self: BoundedProtocol) -> None:
        whose.append(self)
        original(self)

    monkeypatch.setattr(BoundedProtocol, "on_response_complete", note)
    return whose


@pytest.fixture
def turns_of_bodies(monkeypatch: pytest.MonkeyPatch) -> list[StrictConnection]:
    """Return who took a turn, one after the other."""
    whose: list[StrictConnection] = []
    original = StrictConnection.take_turn

    def note(self: StrictConnection) -> None:
        whose.append(self)
        original(self)

    monkeypatch.setattr(StrictConnection, "take_turn", note)
    return whose


async def test_another_is_answered_before_thousands_of_pipelined_requests(
    gateway: Gateway, answered: list[BoundedProtocol]
) -> None:
    async with reachable(gateway) as connect, AsyncExitStack() as stack:
        for _ in range(20):
            await (await stack.enter_async_context(connect())).send(HEALTH * 5000)

        async def each_has_begun() -> bool:
            return len(set(answered)) == 20

        await until(each_has_begun)
        for _ in range(3):
            async with connect() as other:
                before = len(answered)
                await other.send(HEALTH)
                assert await other.status() == 200
                assert len(answered) - before < FEW


async def test_of_a_crowd_that_pipelines_one_begins_at_a_time(
    gateway: Gateway, answered: list[BoundedProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 3600.0)
    async with reachable(gateway) as connect, AsyncExitStack() as stack:
        for _ in range(20):
            await (await stack.enter_async_context(connect())).send(HEALTH * 2)
        async with connect() as other:
            for _ in range(10):
                await other.send(HEALTH)
                assert await other.status() == 200
        assert len(answered) <= 11


async def test_a_turn_is_waited_for_without_a_limit(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 1.3)
    async with reachable(gateway, header_timeout_seconds=1.0) as connect, connect() as one, connect() as other:
        for client in (one, other):
            await client.send(HEALTH * 2)
        for client in (one, other):
            assert [await client.status() for _ in range(2)] == [200, 200]


async def test_one_request_after_the_other_waits_for_no_turn(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 3600.0)
    async with reachable(gateway) as connect, connect() as greedy, connect() as client:
        await greedy.send(HEALTH * 100)
        for request in (HEALTH, asking(), CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)) * 3:
            await client.send(request)
            assert await client.status() == 200


async def test_all_that_was_pipelined_is_answered(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send((HEALTH + asking() + CHUNKED + bytewise(BODY)) * 10)
        assert [await client.status() for _ in range(30)] == [200] * 30
        await client.send(HEALTH)
        assert await client.status() == 200


async def test_the_end_behind_what_waits_for_turns(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(HEALTH * 20 + CHUNKED + bytewise(BODY + b" " * 2000) + HEALTH)
        client.half_close()
        assert (await client.rest()).count(b"HTTP/1.1 200 OK\r\n") == 22


async def test_https(gateway: Gateway, tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    trust = ssl.create_default_context(cafile=str(files.ca))
    async with listening(gateway.app, **files.http_settings) as url:
        client = Client(*await asyncio.open_connection("127.0.0.1", httpx.URL(url).port, ssl=trust))
        await client.send((METRICS + CHUNKED + bytewise(BODY)) * 10)
        assert [await client.status() for _ in range(20)] == [200] * 20
        client.close()


async def test_behind_an_answer_that_is_not_read_no_request_begins(
    gateway: Gateway, answered: list[BoundedProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 0.0)
    large = b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with reachable(gateway) as connect, connect() as client:
        client.read_nothing()
        await client.send(large * 4000)

        async def it_waits_for_its_reader() -> bool:
            return bool(answered) and answered[0].flow.is_held and answered[0].flow.write_paused

        await until(it_waits_for_its_reader)
        stopped = len(answered)
        async with connect() as other:
            await other.send(large * 30)
            assert [await other.status() for _ in range(30)] == [200] * 30
        assert answered.count(answered[0]) == stopped


@pytest.mark.parametrize("is_read", [True, False])
async def test_another_is_answered_before_a_body_in_tiny_chunks(
    gateway: Gateway, turns_of_bodies: list[StrictConnection], *, is_read: bool
) -> None:
    path = b"/v1/completions" if is_read else b"/nothing"
    async with reachable(gateway) as connect, connect() as greedy:
        await greedy.send(CHUNKED.replace(b"/v1/completions", path))
        sending = asyncio.create_task(greedy.send(bytewise(b" " * 200_000)))

        async def it_takes_turns() -> bool:
            return bool(turns_of_bodies)

        await until(it_takes_turns)
        async with connect() as other:
            before = len(turns_of_bodies)
            await other.send(HEALTH)
            assert await other.status() == 200
            assert 0 <= len(turns_of_bodies) - before < FEW
        sending.cancel()


async def test_who_waits_in_a_crowd_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 0.0)
    turns, taken, over = Turns(), list[str](), asyncio.Event()
    for network, who in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("b", "b2"), ("c", "c1")):
        turns.wait(network, who, lambda who=who: taken.append(who))
    turns.wait("a", "last", over.set)
    turns.leave("a", "a2")
    turns.leave("c", "c1")
    turns.leave("d", "unknown")
    async with asyncio.timeout(5):
        await over.wait()
    assert taken == ["a1", "b1", "a3", "b2", "a4"]
