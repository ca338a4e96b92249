"""Bodies that come slowly, not at all, or all at once keep nobody else from being answered."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from services.gateway.http.crowding import Crowd, network_of
from tests.gateway.conftest import Gateway, StartGateway
from tests.gateway.http.sockets import BODY, HEALTH, asking, head, reachable

MIB = 1024 * 1024


async def test_bodies_that_never_come_take_no_place(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_requests=2)
    async with reachable(gateway) as connect, AsyncExitStack() as stack:
        for _ in range(10):
            await (await stack.enter_async_context(connect())).send(head("Content-Length: 1000"))
        async with connect() as client:
            await client.send(asking())
            assert await client.status() == 200


async def test_a_body_that_does_not_come_is_given_up(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(body_timeout_seconds=0.3)
    async with reachable(gateway) as connect, connect() as client:
        await client.send(head("Content-Length: 1000"))
        assert await client.status() == 408
        assert b'"code":"request_timeout"' in client.body
        assert await client.rest() == b""


async def test_a_byte_now_and_then_is_no_progress(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(body_timeout_seconds=0.3)
    async with reachable(gateway) as connect, connect() as client:
        await client.send(head("Content-Length: 1000"))
        assert await client.is_closed_while_sending(b"x", seconds=10)


async def test_a_body_that_comes_at_a_fair_rate_may_take_long(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(body_timeout_seconds=0.5)
    body = BODY + b" " * 2000
    async with reachable(gateway) as connect, connect() as client:
        await client.send(head(f"Content-Length: {len(body)}"))
        for start in range(0, len(body), 300):
            await client.send(body[start : start + 300])
            await asyncio.sleep(0.15)
        assert await client.status() == 200


async def test_what_is_read_together_is_bounded_and_the_largest_goes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_reading_bytes=4 * MIB)
    async with reachable(gateway) as connect, connect() as large, connect() as small:
        await large.send(head(f"Content-Length: {8 * MIB}") + b" " * 3 * MIB)
        body = BODY + b" " * 2 * MIB
        await small.send(asking(body))
        assert await large.status() == 429
        assert b"max_reading_bytes" in large.body
        assert await small.status() == 200


async def test_what_was_read_is_not_counted_any_more(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_reading_bytes=4 * MIB)
    for _ in range(4):
        assert (await gateway.http.post("/v1/completions", content=BODY + b" " * 3 * MIB)).status_code == 200


async def test_an_answer_that_is_not_read_ends_the_connection(gateway: Gateway) -> None:
    async with reachable(gateway, send_timeout_seconds=0.3) as connect, connect() as client:
        client.read_nothing()
        requests = b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n" * 2000

        async def ask_on() -> None:
            while True:
                await client.send(requests)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_on(), 30)


async def test_unread_answers_shut_nobody_out(gateway: Gateway) -> None:
    async with reachable(gateway, max_connections=20) as connect, AsyncExitStack() as stack:
        for _ in range(20):
            client = await stack.enter_async_context(connect())
            client.read_nothing()
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n" * 50)
        for _ in range(3):
            async with connect() as other, asyncio.timeout(5):
                await other.send(HEALTH)
                assert await other.status() == 200


async def test_scrapes_at_once_are_rendered_once(gateway: Gateway) -> None:
    started = time.monotonic()
    answers = await asyncio.gather(*(gateway.http.get("/metrics") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) < 10
    assert time.monotonic() - started < 10


@dataclass(eq=False)
class Connection:
    network: str
    phase_began: float
    is_worked_on: bool = False
    is_closed: bool = False

    def abort(self) -> None:
        self.is_closed = True


def crowd_of(*connections: Connection, most: int = 10) -> Crowd:
    crowd = Crowd(most)
    for connection in sorted(connections, key=lambda one: one.phase_began):
        crowd.enter(connection)
    return crowd


def test_who_makes_room_for_another() -> None:
    one, other = Connection("a", 3.0), Connection("a", 2.0)
    lonely, busy = Connection("b", 1.0), Connection("a", 0.0, is_worked_on=True)
    crowd = crowd_of(one, other, lonely, busy)
    assert crowd.make_room() is other, "of the crowd, the one that has waited longest"
    assert crowd.size == 3
    assert crowd.make_room() is one
    assert crowd.make_room() is lonely, "where all of the crowd are worked on"
    assert crowd.make_room() is None
    assert crowd.size == 1


def test_who_enters_has_another_one_closed_where_there_are_as_many_as_may_be() -> None:
    first, second, third = (Connection("a", began) for began in (1.0, 2.0, 3.0))
    crowd = crowd_of(first, second, third, most=2)
    assert [one.is_closed for one in (first, second, third)] == [True, False, False]
    assert crowd.size == 2


def test_who_does_something_has_not_waited_longest() -> None:
    one, other, third = Connection("a", 1.0), Connection("a", 2.0), Connection("b", 1.5)
    crowd = crowd_of(one, other, third)
    one.phase_began = 3.0
    crowd.begins_phase(one)
    assert crowd.make_room() is other
    assert crowd.make_room() is third, "of networks that have as many, whoever has waited longest"
    crowd.begins_phase(third)
    crowd.leave(third)
    assert crowd.size == 1, "who has gone stays so"


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("a socket's path", "a socket's path")],
)
def test_where_a_client_comes_from(address: str, network: str) -> None:
    assert network_of(address) == network
