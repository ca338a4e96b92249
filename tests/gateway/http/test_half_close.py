"""A client that closes only its own side of the connection gets its answer; one that has left does not."""

import asyncio
import json

import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, StartGateway, until
from tests.gateway.http.sockets import BODY, HEALTH, asking, reachable

STREAM = json.dumps({"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}).encode()


async def test_a_plain_answer(gateway: Gateway) -> None:
    gateway.decode.script.insert(0, 0.6)
    async with reachable(gateway) as connect, connect() as client:
        await client.send(asking())
        client.half_close()
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'" upon a time"' in answer
        assert answer.count(b"HTTP/1.1") == 1


async def test_an_error_keeps_its_status(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(asking(b"{"))
        client.half_close()
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("request_bytes", [HEALTH, asking(), asking() + HEALTH])
async def test_the_end_right_behind_the_requests(gateway: Gateway, request_bytes: bytes) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(request_bytes)
        client.half_close()
        assert (await client.rest()).count(b"HTTP/1.1 200 OK\r\n") == request_bytes.count(b"HTTP/1.1")


@pytest.mark.parametrize("pause_at", [0, 1])
async def test_a_stream(gateway: Gateway, pause_at: int) -> None:
    gateway.decode.script.insert(pause_at, 0.9)
    async with reachable(gateway) as connect, connect() as client:
        await client.send(asking(STREAM))
        await asyncio.sleep(0.2)
        client.half_close()
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        events = [line for line in answer.split(b"\r\n") if line.startswith(b"data: ")]
        assert len(events) == 5
        sizes = [line for line in answer.partition(b"\r\n\r\n")[2].split(b"\r\n") if line and b"data" not in line]
        assert int(sizes[-1], 16) == 0


@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("pause_at", [0, 1])
async def test_one_that_leaves_afterwards_cancels_the_work(gateway: Gateway, body: bytes, pause_at: int) -> None:
    gateway.decode.script.insert(pause_at, 30.0)
    async with reachable(gateway) as connect:
        async with connect() as client:
            await client.send(asking(body))

            async def it_runs() -> bool:
                return bool(gateway.decode.requests)

            await until(it_runs)
            client.half_close()
            await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await gateway.decode.cancelled.wait()


async def test_half_a_request_is_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_requests=1)
    async with reachable(gateway) as connect:
        async with connect() as client:
            await client.send(asking()[:-3])
            client.half_close()
            assert not (await client.rest()).startswith(b"HTTP/1.1 200")
        assert (await gateway.complete()).status_code == 200


@pytest.fixture
def _turns_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new connection waits for a turn, and turns are rare."""
    monkeypatch.setattr("services.gateway.http.turns._WITHOUT_TURN", 0)
    monkeypatch.setattr("services.gateway.http.turns._PAUSE_SECONDS", 0.5)


@pytest.mark.usefixtures("_turns_for_all")
async def test_what_many_ask_who_leave_at_once_is_not_begun(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as other:
        await other.send(HEALTH)
        assert await other.status() == 200  # and the next turn is in half a second
        for _ in range(100):
            async with connect() as client:
                await client.send(asking())
        async with connect() as stayed, asyncio.timeout(5):
            await stayed.send(asking())
            assert await stayed.status() == 200
    assert len(gateway.decode.requests) == 1


@pytest.mark.usefixtures("_turns_for_all")
@pytest.mark.parametrize("request_bytes", [HEALTH, asking(), asking() + HEALTH])
async def test_who_waits_for_a_turn_may_close_its_side(gateway: Gateway, request_bytes: bytes) -> None:
    async with reachable(gateway) as connect, connect() as other:
        await other.send(HEALTH)
        assert await other.status() == 200
        async with connect() as client:
            await client.send(request_bytes)
            client.half_close()
            assert (await client.rest()).count(b"HTTP/1.1 200 OK\r\n") == request_bytes.count(b"HTTP/1.1")
