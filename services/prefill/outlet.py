"""Where a skeleton's layers leave: inline as they are, or into the store, with references in their place."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from common import metrics
from common.errors import StoreError
from common.pb import prefill_pb2, skeleton_pb2
from common.skeleton import wire
from common.skeleton.spec import SkeletonSpec
from common.transport import stored
from common.transport.redis_store import RedisStore

logger = logging.getLogger(__name__)


class StoreOutlet:
    """Puts one skeleton into the store, as long as the store takes it. Enter it; what is unfinished at exit goes."""

    def __init__(self, store: RedisStore, skeleton: SkeletonSpec, request_id: str) -> None:
        self._store = store
        self._skeleton = skeleton
        self._request_id = request_id
        self._writer = secrets.token_hex(8)
        bounds = [stored.layer_bound_bytes(skeleton, tokens) for tokens in skeleton.max_kept_tokens]
        self._num_bytes = sum(bounds)
        self._fits = max(bounds) <= stored.LAYER_BYTES
        self._reserved = False
        self._open = False
        self._published = False
        self._layer: list[skeleton_pb2.LayerChunk] = []
        self._references: list[skeleton_pb2.LayerReference] = []
        self._putting: asyncio.Task[skeleton_pb2.LayerReference] | None = None

    async def __aenter__(self) -> Self:
        """Reserve room."""
        try:
            self._reserved = self._fits and await self._store.reserve(self._skeleton, self._writer, self._num_bytes)
        except StoreError as error:
            self._give_up("failed", str(error))
        else:
            self._open = self._reserved
            if not self._open:
                self._give_up("full", f"{self._num_bytes} bytes do not fit")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what a skeleton that was not completed has left; a second cancellation does not stop that."""
        if self._reserved and not self._published:
            await asyncio.shield(asyncio.ensure_future(self._discard()))

    async def pass_on(self, event: prefill_pb2.PrefillEvent) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        """Yield what is sent in a message's place, if anything."""
        if event.HasField("chunk") and self._open:
            self._layer.append(event.chunk)
            if event.chunk.token_start + event.chunk.num_tokens == event.chunk.layer_tokens:
                for message in await self._put_layer():
                    yield message
            return
        if event.HasField("result") and self._open:
            await self._publish(event.result)
        yield event

    async def _put_layer(self) -> list[prefill_pb2.PrefillEvent]:
        chunks, self._layer = self._layer, []
        # Not broken off when the prompt is cancelled: the server might take the layer after it was told to remove it.
        self._putting = asyncio.ensure_future(self._store.put_layer(self._skeleton, self._writer, chunks))
        try:
            reference = await asyncio.shield(self._putting)
        except StoreError as error:
            self._give_up("failed", str(error))
            return [prefill_pb2.PrefillEvent(chunk=chunk) for chunk in chunks]
        self._references.append(reference)
        return [prefill_pb2.PrefillEvent(reference=reference)]

    async def _publish(self, result: skeleton_pb2.PrefillResult) -> None:
        complete = skeleton_pb2.StoredSkeleton(
            header=wire.header(self._skeleton), layers=self._references, result=result
        )
        try:
            await self._store.publish(self._skeleton, complete)
            self._published = True
        except StoreError as error:
            self._give_up("failed", str(error))

    async def _discard(self) -> None:
        if self._putting is not None:
            await asyncio.gather(self._putting, return_exceptions=True)
        try:
            await self._store.discard(self._skeleton, self._writer, self._num_bytes)
        except StoreError as error:
            logger.warning(
                "an unfinished skeleton stays in the store until it expires",
                extra={"request_id": self._request_id, "error": str(error)},
            )

    def _give_up(self, reason: str, why: str) -> None:
        self._open = False
        metrics.STORE_FALLBACKS.labels(reason).inc()
        logger.warning(
            "the store is of no use, the skeleton crosses inline",
            extra={"request_id": self._request_id, "reason": reason, "error": why},
        )
