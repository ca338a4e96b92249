"""A network link of a given rate, emulated: a TCP proxy that lets through so many bytes a second each way.

`python -m benchmarks.link HOST:PORT GBIT_PER_S` listens on a free port, prints it, and forwards to the address.
"""

import asyncio
import contextlib
import sys
import time

_READ_BYTES = 64 * 1024
_BURST_SECONDS = 0.001
"""What an idle link may have saved up: about what a network card's queue holds."""


class TokenBucket:
    """Lets a rate of bytes through, shared by all connections of one direction."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = time.monotonic()  # when all that was let through so far has left the link

    async def take(self, num_bytes: int) -> None:
        """Return when so many bytes more have passed."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + num_bytes / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class Link:
    """The proxy: `start` it, connect to `port`, `stop` it."""

    def __init__(self, host: str, port: int, gbit_per_second: float) -> None:
        """Take where to forward to, and the rate of each direction."""
        self._target = (host, port)
        rate = gbit_per_second * 1e9 / 8
        self._up, self._down = TokenBucket(rate), TokenBucket(rate)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            with contextlib.closing(writer):
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                with contextlib.closing(far_writer):
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pump(reader, far_writer, self._up))
                        both.create_task(_pump(far_reader, writer, self._down))
        except* OSError:
            pass  # one side went away; the other is closed and sees it


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: TokenBucket) -> None:
    while data := await reader.read(_READ_BYTES):
        await bucket.take(len(data))
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _main(address: str, gbit_per_second: float) -> None:
    host, _, port = address.rpartition(":")
    link = Link(host, int(port), gbit_per_second)
    await link.start()
    print(link.port, flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(sys.argv[1], float(sys.argv[2])))
