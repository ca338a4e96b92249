import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.link import Link, TokenBucket

DATA = random.Random(0).randbytes(3_000_001)


@asynccontextmanager
async def linked(answer: bytes) -> AsyncIterator[tuple[Link, list[bytes]]]:
    """A link to a server that reads all that it gets, then answers; and what it got."""
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(-1))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = Link("127.0.0.1", server.sockets[0].getsockname()[1], gbit_per_second=10)
    await link.start()
    try:
        yield link, got
    finally:
        await link.stop()
        server.close()


async def send(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_bytes_arrive_as_they_were_sent_both_ways() -> None:
    async with linked(DATA[::-1]) as (link, got):
        answer = await send(link.port, DATA)
    assert hashlib.sha256(got[0]).digest() == hashlib.sha256(DATA).digest()
    assert answer == DATA[::-1]


async def test_connections_are_kept_apart() -> None:
    async with linked(b"done") as (link, got):
        parts = [DATA[:100_000], DATA[100_000:250_000], b""]
        answers = await asyncio.gather(*(send(link.port, part) for part in parts))
    assert answers == [b"done"] * 3
    assert sorted(got) == sorted(parts)


async def test_a_target_that_is_away_closes_the_connection() -> None:
    async with linked(b"") as (link, _):
        gone = Link("127.0.0.1", link.port, gbit_per_second=1)
        await link.stop()
        await gone.start()
        assert await send(gone.port, b"hello") == b""
        await gone.stop()


async def test_a_bucket_takes_the_time_that_its_rate_asks_for() -> None:
    bucket = TokenBucket(bytes_per_second=100_000)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(5):
        await bucket.take(2_000)
    assert loop.time() - started >= 0.09  # 0.1 s, less what an idle link has saved up
