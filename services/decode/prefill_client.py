"""Asks prefill workers for a prompt's skeleton, and notices when one has died or stalls."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from common import tracing
from common.breaker import Breaker
from common.errors import UnavailableError, from_rpc
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.rpc import open_channel
from common.tls import Tls

Call = grpc.aio.UnaryStreamCall[prefill_pb2.PrefillRequest, prefill_pb2.PrefillEvent]

_MAX_CHANNELS = 64
_METHOD = "structkv.v1.Prefill/Prefill"


@dataclass(slots=True)
class _Used:
    """A channel, how many calls use it, and what is thought of the worker at its other end."""

    channel: grpc.aio.Channel
    num_users: int = 0
    breaker: Breaker = field(default_factory=Breaker)


class PrefillClient:
    """Channels to the prefill workers that requests name."""

    def __init__(self, *, stall_seconds: float, tls: Tls | None = None) -> None:
        """A worker that says nothing for `stall_seconds` has stalled: one that merely has much to do says so."""
        self._stall_seconds = stall_seconds
        self._tls = tls
        self._channels: dict[str, _Used] = {}

    def in_order(self, targets: Iterable[str]) -> list[str]:
        """Return the targets as they come, but last those that failed lately where others did not."""
        return sorted(targets, key=lambda target: target in self._channels and self._channels[target].breaker.resting)

    def delivered(self, target: str, failed: Iterable[str]) -> None:
        """Note that a worker did what others had failed to do before."""
        for other in failed:
            if other in self._channels:
                self._channels[other].breaker.blamed()
        if target in self._channels:
            self._channels[target].breaker.succeeded()

    def failed(self, target: str) -> None:
        """Note that a worker failed."""
        if target in self._channels:
            self._channels[target].breaker.failed()

    async def events(
        self, target: str, request: prefill_pb2.PrefillRequest, timeout_seconds: float | None
    ) -> AsyncGenerator[prefill_pb2.PrefillEvent, None]:
        """Yield a worker's messages. Closing the iterator cancels the prompt. Raises the worker's error."""
        async with self._channel(target) as channel:
            with tracing.call_span(_METHOD, target) as span:
                metadata = tracing.metadata_of(span)
                call = prefill_pb2_grpc.PrefillStub(channel).Prefill(
                    request, timeout=timeout_seconds, metadata=metadata
                )
                try:
                    while (event := await self._read(call, target)) is not None:
                        yield event
                finally:
                    call.cancel()

    async def _read(self, call: Call, target: str) -> prefill_pb2.PrefillEvent | None:
        """Return a call's next message, None at its end."""
        try:
            async with asyncio.timeout(self._stall_seconds):  # wait_for may swallow a cancellation
                event = await call.read()
        except TimeoutError:
            raise UnavailableError(f"{target} said nothing for {self._stall_seconds:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        return event if isinstance(event, prefill_pb2.PrefillEvent) else None

    async def close(self) -> None:
        """Close all channels."""
        for used in self._channels.values():
            await used.channel.close()

    @asynccontextmanager
    async def _channel(self, target: str) -> AsyncIterator[grpc.aio.Channel]:
        """Use a worker's channel. Workers come and go: of too many channels, those unused longest are closed."""
        used = self._channels.pop(target, None) or _Used(open_channel(target, self._tls))
        self._channels[target] = used  # the dictionary's order is that of their last use
        used.num_users += 1
        used.breaker.asked()
        try:
            yield used.channel
        finally:
            used.num_users -= 1
            idle = [name for name, other in self._channels.items() if not other.num_users]
            for name in idle[: max(0, len(self._channels) - _MAX_CHANNELS)]:
                await self._channels.pop(name).channel.close()
