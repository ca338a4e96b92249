"""What two servers could read differently is refused, and the connection closed: else a second request hides in it."""

import asyncio

import pytest

from tests.gateway.conftest import Gateway
from tests.gateway.http.sockets import BODY, HEALTH, asking, head, reachable

CHUNKED = "Transfer-Encoding: chunked"


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(f"Content-Length: {len(BODY)}", CHUNKED) + chunks(BODY),
        head(CHUNKED, "Content-Length: 3") + chunks(BODY),
        head(f"Content-Length: {len(BODY)}", "Content-Length: 3") + BODY,
        head(f"Content-Length: {len(BODY)}", f"content-length: {len(BODY)}") + BODY,
        head(f"Content-Length: {len(BODY)}, {len(BODY)}") + BODY,
        head(f"Content-Length: +{len(BODY)}") + BODY,
        head(f"Content-Length: -{len(BODY)}") + BODY,
        head(f"Content-Length: 0x{len(BODY):x}") + BODY,
        head(f"Content-Length : {len(BODY)}") + BODY,
        head("Content-Length:") + BODY,
        head("Transfer-Encoding: gzip, chunked") + chunks(BODY),
        head("Transfer-Encoding: identity") + BODY,
        head("Transfer-Encoding: xchunked") + chunks(BODY),
        head(CHUNKED, CHUNKED) + chunks(BODY),
        head(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + chunks(BODY),
        head("X-Folded: a", f" Content-Length: {len(BODY)}") + BODY,
        head("X-A: b\nContent-Length: 3") + b"abc",
        head("X-A: b\rContent-Length: 3") + b"abc",
        asking().replace(b"\r\n", b"\n"),
        asking().replace(b"\r\n\r\n", b"\r\n\n"),
        asking().replace(b" HTTP", b"  HTTP"),
        asking().replace(b"HTTP/1.1", b"HTTP/1.2"),
        asking().replace(b"HTTP/1.1", b"HTTP/2.0"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        asking().replace(b"Host: gateway\r\n", b""),
        asking().replace(b"Host: gateway", b"Host: gateway\r\nHost: other"),
        asking().replace(b"Host", b"X\x00Y: a\r\nHost"),
        head(CHUNKED) + b"%x;name=value\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"%x \r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"%x\n%b\n0\n\n" % (len(BODY), BODY),
        head(CHUNKED) + b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"%x\r\n%b\r\n0\r\nX-Trailer: a\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"%017x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        head(CHUNKED) + b"-1\r\n",
        head("X-Large: " + "x" * 20_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_it_is_refused_and_nothing_behind_it_is_read(gateway: Gateway, request_bytes: bytes) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(request_bytes + HEALTH)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert not gateway.decode.requests


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "request_bytes",
    [
        asking(),
        asking(BODY, "X-Empty:", "Accept: a, b", "X-Text: \x7f\xe4"),
        head(CHUNKED) + chunks(BODY),
        head("transfer-encoding: Chunked") + chunks(*(BODY[place : place + 1] for place in range(len(BODY)))),
        head(CHUNKED) + b"00%X\r\n%b\r\n000\r\n\r\n" % (len(BODY), BODY),
    ],
)
async def test_what_is_well_formed_is_read_however_it_is_cut(gateway: Gateway, request_bytes: bytes, cut: int) -> None:
    async with reachable(gateway) as connect, connect() as client:
        pieces = [request_bytes[start : start + cut] for start in range(0, len(request_bytes), cut)]
        for piece in pieces:
            await client.send(piece)
            if cut > 1:
                await asyncio.sleep(0)
        assert await client.status() == 200
        await client.send(HEALTH)
        assert await client.status() == 200


@pytest.mark.parametrize("url", [b"http://gateway/health", b"HTTPS://gateway:8000/health?a=b"])
async def test_a_whole_url_is_taken_by_its_path(gateway: Gateway, url: bytes) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(HEALTH.replace(b"/health", url))
        assert await client.status() == 200


async def test_a_chunk_behind_the_last_one_is_none_of_the_body(gateway: Gateway) -> None:
    """Whole chunks are read many at a time, but none behind the last one: for a proxy in front the body ends there."""
    async with reachable(gateway) as connect, connect() as client:
        await client.send(head(CHUNKED) + chunks(BODY) + b"3\r\nabc\r\n\r\n")
        assert await client.status() == 200
        assert await client.is_closed_while_sending()


async def test_malformed_chunks_behind_an_answer_end_the_connection(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(head(CHUNKED).replace(b"/v1/completions", b"/nothing"))
        assert await client.status() == 404
        await client.send(b"no size\r\n")
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_turn(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(HEALTH + asking() + HEALTH)
        assert [await client.status() for _ in range(3)] == [200, 200, 200]


async def test_many_tiny_chunks_do_not_occupy_the_loop(gateway: Gateway) -> None:
    """A megabyte of chunks of one byte, of a body that nobody reads; others are answered meanwhile."""
    async with reachable(gateway) as connect, connect() as client, connect() as other:
        await client.send(head(CHUNKED))
        sending = asyncio.create_task(client.send(b"1\r\n{\r\n" * 200_000))
        await other.send(HEALTH)
        async with asyncio.timeout(2):
            assert await other.status() == 200
        await sending
