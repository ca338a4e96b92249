"""The receiving side of the throughput measurement."""

import asyncio
from typing import Self

import grpc

from benchmarks.sender import STORE_BYTES, Skeleton
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.skeleton.wire import SkeletonReader
from common.transport.redis_store import RedisStore


def take(reader: SkeletonReader, event: prefill_pb2.PrefillEvent) -> None:
    """Read one message as a decode worker does."""
    if event.HasField("header"):
        reader.read_header(event.header)
    elif event.HasField("chunk"):
        reader.read_chunk(event.chunk)
    else:
        reader.read_result(event.result)


class Receiver:
    """Takes skeletons as a decode worker does, all but their place in its memory; a context manager."""

    def __init__(self, skeleton: Skeleton, address: str, redis_url: str) -> None:
        self._skeleton = skeleton
        self._address = address
        self._redis_url = redis_url
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def receive(self, *, through_store: bool = False) -> None:
        """Receive the whole skeleton, in the call itself or through the store."""
        self._runner.run(self._receive(through_store))

    async def _open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._address)
        self._store = RedisStore.open(self._redis_url, ttl_seconds=60, max_bytes=STORE_BYTES)

    async def _close(self) -> None:
        await self._channel.close()
        await self._store.close()

    async def _receive(self, through_store: bool) -> None:
        reader = self._skeleton.reader()
        request = prefill_pb2.PrefillRequest(store=through_store)
        async for event in prefill_pb2_grpc.PrefillStub(self._channel).Prefill(request):
            if not event.HasField("reference"):
                take(reader, event)
                continue
            for chunk in (await self._store.get_layer(event.reference)).chunks:
                reader.read_chunk(chunk)
