"""Asks prefill workers for a prompt's skeleton, and notices when one has died or stalls."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from common.errors import UnavailableError, from_rpc
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.rpc import open_channel
from common.tls import Tls


class PrefillClient:
    """Channels to the prefill workers that requests name."""

    def __init__(self, *, stall_seconds: float, tls: Tls | None = None) -> None:
        """A worker that says nothing for `stall_seconds` has stalled: one that merely has much to do says so."""
        self._stall_seconds = stall_seconds
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def events(
        self, target: str, request: prefill_pb2.PrefillRequest, timeout_seconds: float | None
    ) -> AsyncGenerator[prefill_pb2.PrefillEvent, None]:
        """Yield a worker's messages. Closing the iterator cancels the prompt. Raises the worker's error."""
        call = self._stub(target).Prefill(request, timeout=timeout_seconds)
        try:
            while True:
                async with asyncio.timeout(
                    self._stall_seconds
                ):  # wait_for may swallow a cancellation before Python 3.12
                    event = await call.read()
                if event is grpc.aio.EOF:
                    return
                assert isinstance(event, prefill_pb2.PrefillEvent)
                yield event
        except TimeoutError:
            raise UnavailableError(f"{target} said nothing for {self._stall_seconds:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()

    def _stub(self, target: str) -> "prefill_pb2_grpc.PrefillAsyncStub":
        if target not in self._channels:
            self._channels[target] = open_channel(target, self._tls)
        return prefill_pb2_grpc.PrefillStub(self._channels[target])
