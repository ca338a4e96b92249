"""Gets a request's skeleton into the KV memory: from the store, or from the first prefill worker that delivers it."""

import logging
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass

from torch import Tensor

from common.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PrefillFailedError,
    SkeletonError,
    StoreError,
    StructKVError,
)
from common.pb import decode_pb2, prefill_pb2, skeleton_pb2
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import SkeletonReader
from common.transport import stored
from common.transport.redis_store import RedisStore
from services.decode.metrics import DecodeMetrics
from services.decode.pool import KVPool, SequenceKV
from services.decode.prefill_client import PrefillClient

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A loaded skeleton: the prompt's last hidden state, [D], and what it took."""

    hidden_state: Tensor
    stats: decode_pb2.SkeletonStats


@dataclass(frozen=True, slots=True)
class Order:
    """A skeleton that is wanted: by which request, by when (monotonic; None for ever), and where it goes."""

    request: decode_pb2.GenerateRequest
    skeleton: SkeletonSpec
    kv: SequenceKV
    deadline: float | None

    @property
    def seconds_left(self) -> float | None:
        """Time until the deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class SkeletonLoader:
    """Loads skeletons for one KV memory."""

    def __init__(
        self,
        pool: KVPool,
        prefill: PrefillClient,
        store: RedisStore | None,
        metrics: DecodeMetrics | None = None,
    ) -> None:
        """Take where skeletons go and where they come from; without a store all of them come inline."""
        self._pool = pool
        self._prefill = prefill
        self._store = store
        self._metrics = metrics or DecodeMetrics()

    async def load(self, order: Order) -> Skeleton:
        """Return the skeleton, complete and verified in the order's blocks.

        A worker that is away, full, stalled or broken, or sends damaged data, is passed over. Raises OverloadedError
        or PrefillFailedError when none is left, and at once what any worker would say: InvalidRequestError and
        DeadlineError.
        """
        store = self._usable_store()
        if store is not None and (found := await self._from_store(store, order)) is not None:
            return found
        return await self._from_any_worker(order)

    async def _from_any_worker(self, order: Order) -> Skeleton:
        failure: StructKVError = PrefillFailedError("the request names no prefill worker")
        failed: list[str] = []
        for target in self._prefill.in_order(order.request.prefill_targets):
            try:
                skeleton = await self._from_worker(target, order, self._usable_store())
            except (InvalidRequestError, DeadlineError):
                raise
            except StructKVError as error:
                if not isinstance(failure, OverloadedError):  # that there is no room now is the better answer
                    failure = error
                if not isinstance(error, OverloadedError):
                    self._prefill.failed(target)
                    failed.append(target)
                self._metrics.failed_over(error.code.name.lower())
                self._log("prefill worker failed", order, error, target=target)
            else:
                self._prefill.delivered(target, failed)
                return skeleton
        if isinstance(failure, OverloadedError):
            raise failure
        raise PrefillFailedError(f"no prefill worker delivered the skeleton; the last one: {failure}") from failure

    def _usable_store(self) -> RedisStore | None:
        return self._store if self._store is not None and self._store.admits() else None

    async def _from_store(self, store: RedisStore, order: Order) -> Skeleton | None:
        """Return a skeleton that an earlier prefill left, if there is a sound one."""
        load = _Load(self._pool, order, store)
        try:
            complete = await store.find(order.skeleton)
            if complete is None:
                return None
            return await load.take_stored(complete)
        except SkeletonError as error:
            self._fall_back("damaged", order, error)
            await self._forget(store, order)
            return None
        except StoreError as error:
            self._fall_back("failed", order, error)
            return None

    async def _forget(self, store: RedisStore, order: Order) -> None:
        try:
            await store.forget(order.skeleton)
        except StoreError as error:
            self._log("a damaged skeleton stays in the store", order, error)

    async def _from_worker(self, target: str, order: Order, store: RedisStore | None) -> Skeleton:
        """Ask one worker; what it left in the store and cannot be had there, it is asked for again, inline."""
        try:
            return await self._stream(target, order, store)
        except StoreError as error:
            self._fall_back("lost", order, error)
        return await self._stream(target, order, None)

    async def _stream(self, target: str, order: Order, store: RedisStore | None) -> Skeleton:
        load = _Load(self._pool, order, store)
        request = prefill_pb2.PrefillRequest(
            request_id=order.request.request_id,
            model_fingerprint=order.skeleton.model.fingerprint,
            prompt_token_ids=order.request.prompt_token_ids,
            selection=order.request.selection,
            priority=order.request.priority,
            client=order.request.client,
            store=store is not None,
        )
        async with aclosing(self._prefill.events(target, request, order.seconds_left)) as events:
            async for event in events:
                if event.HasField("result"):
                    return load.finish(event.result, reused=False)
                await load.take(event)
        raise SkeletonError(f"{target} ended the skeleton before its result")

    def _fall_back(self, reason: str, order: Order, error: StructKVError) -> None:
        self._metrics.fell_back(reason)
        self._log("the store is of no use, the skeleton crosses inline", order, error, reason=reason)

    def _log(self, message: str, order: Order, error: StructKVError, **extra: str) -> None:
        logger.warning(message, extra={"request_id": order.request.request_id, "error": str(error), **extra})


class _Load:
    """One attempt to fill a request's blocks, message by message."""

    def __init__(self, pool: KVPool, order: Order, store: RedisStore | None) -> None:
        order.kv.rewind()
        self._pool = pool
        self._kv = order.kv
        self._store = store
        self._started = time.monotonic()
        self._bounds = order.skeleton.max_kept_tokens
        self._transport = "inline"
        self._reader = SkeletonReader(order.skeleton, self._bounds, device=pool.keys.device, dtype=pool.keys.dtype)

    async def take(self, event: prefill_pb2.PrefillEvent) -> None:
        """Take a message from a worker, all but the result."""
        if event.HasField("header"):
            self._reader.read_header(event.header)
        elif event.HasField("chunk"):
            self._write([event.chunk])
        elif event.HasField("reference"):
            try:
                await self._take_layer(event.reference)
            except SkeletonError as error:  # the worker may well have sent it soundly
                raise StoreError(f"what the store gave back is damaged: {error}") from error

    async def take_stored(self, complete: skeleton_pb2.StoredSkeleton) -> Skeleton:
        """Take a stored skeleton with all its layers."""
        self._reader.read_header(complete.header)
        stored.check_manifest(complete, self._reader.skeleton, self._bounds)
        for reference in complete.layers:
            await self._take_layer(reference)
        return self.finish(complete.result, reused=True)

    def finish(self, result: skeleton_pb2.PrefillResult, *, reused: bool) -> Skeleton:
        """Take the closing message; return the skeleton.

        What neither waiting nor computing explains of the time is the transfer's. A stored result tells of waiting
        and computing that were another request's.
        """
        hidden_state = self._reader.read_result(result).to(self._pool.keys)
        skeleton, seconds = self._reader.skeleton, time.monotonic() - self._started
        queued, computed = (0.0, 0.0) if reused else (result.queue_seconds, result.prefill_seconds)
        stats = decode_pb2.SkeletonStats(
            pivot_layer=result.pivot_layer if result.HasField("pivot_layer") else None,
            kept_tokens_per_layer=self._reader.kept_tokens,
            skeleton_bytes=self._reader.num_bytes,
            full_kv_bytes=skeleton.model.full_kv_bytes(skeleton.prompt_tokens),
            queue_seconds=queued,
            prefill_seconds=computed,
            transfer_seconds=max(0.0, seconds - queued - computed),
            transport=self._transport,
            cached_tokens=skeleton.prompt_tokens if reused else 0,
        )
        return Skeleton(hidden_state, stats)

    async def _take_layer(self, reference: skeleton_pb2.LayerReference) -> None:
        if self._store is None:
            raise SkeletonError("a layer is said to be in the store, which was not asked for")
        layer = len(self._reader.kept_tokens)
        if layer >= len(self._bounds):
            raise SkeletonError(f"a reference to layer {layer} of {len(self._bounds)}")
        stored.check_reference(self._reader.skeleton, reference, layer, self._bounds[layer])
        self._transport = "redis"
        self._write((await self._store.get_layer(reference)).chunks)

    def _write(self, messages: Iterable[skeleton_pb2.LayerChunk]) -> None:
        for message in messages:
            chunk = self._reader.read_chunk(message)
            self._pool.write(self._kv.tables[chunk.layer], chunk.keys, chunk.values, chunk.positions or ())
