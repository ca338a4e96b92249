"""The sending side of the throughput measurement, in a process of its own."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import grpc
import torch
from torch import Tensor

from common.model.decoder import ModelSpec
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.skeleton import wire
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import SkeletonReader
from common.transport.redis_store import RedisStore
from services.prefill.outlet import Outlet

_BLOCK_BYTES = 1 << 20
STORE_BYTES = 256 * 1024 * 1024
"""Room for the few skeletons of one measurement."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A skeleton in a real one's shape, and what both sides know of it.

    Attributes:
        layers: keys and values, each [kept, G, d], in the model's dtype.
    """

    spec: ModelSpec
    prompt_tokens: int
    selection: Selection
    layers: list[tuple[Tensor, Tensor]]

    @classmethod
    def random(cls, spec: ModelSpec, prompt_tokens: int, selection: Selection) -> Self:
        """Return one with random numbers: what they are changes neither its size nor its speed."""
        generator = torch.Generator().manual_seed(0)
        layers = []
        for kept in selection.layer_budgets(prompt_tokens, spec.num_layers):
            shape = (kept, spec.num_kv_heads, spec.head_dim)
            keys, values = (torch.randn(shape, generator=generator).to(spec.dtype) for _ in range(2))
            layers.append((keys, values))
        return cls(spec, prompt_tokens, selection, layers)

    @property
    def described(self) -> SkeletonSpec:
        """What it would be the skeleton of."""
        return SkeletonSpec.of(self.spec, [0] * self.prompt_tokens, self.selection)

    def events(self) -> Iterator[prefill_pb2.PrefillEvent]:
        """Yield its messages, each encoded when it is asked for."""
        skeleton = self.described
        yield prefill_pb2.PrefillEvent(header=wire.header(skeleton))
        for layer, (keys, values) in enumerate(self.layers):
            for chunk in wire.layer_chunks(skeleton, layer, keys, values, None):
                yield prefill_pb2.PrefillEvent(chunk=chunk)
        yield prefill_pb2.PrefillEvent(result=wire.prompt_end(skeleton, torch.zeros(self.spec.hidden_size), None))

    def messages(self) -> list[prefill_pb2.PrefillEvent]:
        """Return all its messages."""
        return list(self.events())

    def reader(self) -> SkeletonReader:
        """Return a receiver that expects it."""
        bounds = self.selection.layer_budgets(self.prompt_tokens, self.spec.num_layers)
        return SkeletonReader(self.described, bounds, dtype=self.spec.dtype)


class _Sender(prefill_pb2_grpc.PrefillServicer):
    def __init__(self, skeleton: Skeleton, store: RedisStore) -> None:
        self._spec = skeleton.described
        self._messages = skeleton.messages()  # encoding has rows of its own, and would fight decoding for the cores
        self._store = store

    async def Prefill(  # type: ignore[override]  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: "grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillEvent]",
    ) -> None:
        """Send the skeleton, whatever is asked, on the way that is asked for."""
        store = self._store if request.store else None
        async with Outlet(self._spec, "benchmark", store) as outlet:
            for event in self._messages:
                async for message in outlet.pass_on(event):
                    await context.write(message)


def serve(spec: ModelSpec, prompt_tokens: int, selection: Selection, redis_url: str, pipe: Connection) -> None:
    """Serve a random skeleton until terminated: over gRPC or through Redis, and its bytes from a plain socket.

    Sends both ports and the number of bytes through the pipe.
    """
    asyncio.run(_serve(Skeleton.random(spec, prompt_tokens, selection), redis_url, pipe))


async def _serve(skeleton: Skeleton, redis_url: str, pipe: Connection) -> None:
    num_bytes = sum(message.ByteSize() for message in skeleton.messages())
    server = grpc.aio.server()
    store = RedisStore.open(redis_url, ttl_seconds=60, max_bytes=STORE_BYTES)
    prefill_pb2_grpc.add_PrefillServicer_to_server(_Sender(skeleton, store), server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_send_to_all, args=(listener, bytes(num_bytes)), daemon=True).start()
    pipe.send((grpc_port, listener.getsockname()[1], num_bytes))
    await server.wait_for_termination()


def _send_to_all(listener: socket.socket, data: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(data)


def receive_message_bytes(connection: socket.socket, num_bytes: int) -> None:
    """Read so many bytes into one buffer, as fast as they come."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    left = num_bytes
    while left:
        got = connection.recv_into(buffer[: min(left, _BLOCK_BYTES)])
        if not got:
            raise ConnectionError(f"{left} bytes are missing")
        left -= got
