"""Where a skeleton's layers leave: inline as they are, or into the store, with references in their place."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from common.errors import StoreError
from common.pb import prefill_pb2, skeleton_pb2
from common.skeleton import wire
from common.skeleton.spec import SkeletonSpec
from common.transport import stored
from common.transport.redis_store import RedisStore

logger = logging.getLogger(__name__)


class Outlet:
    """One skeleton's way out, a context manager. Given a store, its layers go there as long as it takes them."""

    def __init__(
        self,
        skeleton: SkeletonSpec,
        request_id: str,
        store: RedisStore | None,
        on_fallback: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take the skeleton and the store; `on_fallback` is told in a word why the store is not used any further."""
        self._store = store
        self._on_fallback = on_fallback
        self._skeleton = skeleton
        self._request_id = request_id
        self._writer = secrets.token_hex(8)
        self._num_bytes = 0
        self._asked_for_room = False
        self._published = False
        self._layer: list[prefill_pb2.PrefillEvent] = []
        self._references: list[skeleton_pb2.LayerReference] = []
        self._putting: asyncio.Task[skeleton_pb2.LayerReference | None] | None = None

    async def __aenter__(self) -> Self:
        """Look whether the layers are of a size for the store. Room is reserved with the first one that is there."""
        if self._store is not None:
            bounds = [stored.layer_bound_bytes(self._skeleton, tokens) for tokens in self._skeleton.max_kept_tokens]
            self._num_bytes = sum(bounds)
            if max(bounds) > stored.LAYER_BYTES:
                self._give_up("full", f"a layer may have {max(bounds)} bytes")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what a prompt that was broken off has left; a second cancellation does not stop that.

        What a store that failed midway still holds is left to expire: decode may be about to fetch it.
        """
        if error is not None and self._asked_for_room and not self._published:
            await asyncio.shield(asyncio.ensure_future(self._discard()))

    async def pass_on(self, event: prefill_pb2.PrefillEvent) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        """Yield what is sent in a message's place, if anything."""
        if event.HasField("chunk") and self._store is not None:
            self._layer.append(event)
            if event.chunk.token_start + event.chunk.num_tokens == event.chunk.layer_tokens:
                for message in await self._put_layer():
                    yield message
            return
        if event.HasField("result") and self._store is not None:
            await self._publish(self._store, event.result)
        yield event

    async def _put_layer(self) -> list[prefill_pb2.PrefillEvent]:
        events, self._layer = self._layer, []
        # Not broken off when the prompt is cancelled: the server might take the layer after it was told to remove it.
        self._putting = asyncio.ensure_future(self._put([event.chunk for event in events]))
        try:
            reference = await asyncio.shield(self._putting)
        except StoreError as error:
            self._give_up("failed", str(error))
        else:
            if reference is not None:
                self._references.append(reference)
                return [prefill_pb2.PrefillEvent(reference=reference)]
            self._give_up("full", f"{self._num_bytes} bytes are more than there may be")
        return events

    async def _put(self, chunks: list[skeleton_pb2.LayerChunk]) -> skeleton_pb2.LayerReference | None:
        """Store a layer; None if there cannot be room for the skeleton."""
        assert self._store is not None
        if not self._asked_for_room:
            self._asked_for_room = True
            if not await self._store.reserve(self._skeleton, self._writer, self._num_bytes):
                return None
        return await self._store.put_layer(self._skeleton, self._writer, self._num_bytes, chunks)

    async def _publish(self, store: RedisStore, result: skeleton_pb2.PrefillResult) -> None:
        header = wire.header(self._skeleton)
        complete = skeleton_pb2.StoredSkeleton(header=header, layers=self._references, result=result)
        try:
            await store.publish(self._skeleton, self._writer, self._num_bytes, complete)
            self._published = True
        except StoreError as error:
            self._give_up("failed", str(error))

    async def _discard(self) -> None:
        if self._putting is not None:
            await asyncio.gather(self._putting, return_exceptions=True)
        if self._store is None:
            return  # it failed, and what it holds expires
        try:
            await self._store.discard(self._skeleton, self._writer, self._num_bytes)
        except StoreError as error:
            logger.warning(
                "an unfinished skeleton stays in the store until it expires",
                extra={"request_id": self._request_id, "error": str(error)},
            )

    def _give_up(self, reason: str, why: str) -> None:
        self._store = None
        self._on_fallback(reason)
        logger.warning(
            "the skeleton goes on inline, the store is of no use",
            extra={"request_id": self._request_id, "reason": reason, "error": why},
        )
