"""Gets a request's skeleton from a prefill worker into the KV memory."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from torch import Tensor

from common.errors import OverloadedError, SkeletonError, StructKVError, UnavailableError, from_rpc
from common.model.decoder import ModelSpec
from common.pb import decode_pb2, prefill_pb2, prefill_pb2_grpc, skeleton_pb2
from common.rpc import open_channel
from common.skeleton.selection import Selection
from common.skeleton.wire import SkeletonReader
from services.decode.pool import KVPool, SequenceKV

_TRY_NEXT = (UnavailableError, OverloadedError, SkeletonError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A loaded skeleton: the prompt's last hidden state, [D], and what it took."""

    hidden_state: Tensor
    stats: decode_pb2.SkeletonStats


class PrefillClient:
    """Channels to the prefill workers that requests name."""

    def __init__(self, spec: ModelSpec, pool: KVPool) -> None:
        self._spec = spec
        self._pool = pool
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def fetch(
        self,
        request: decode_pb2.GenerateRequest,
        kv: SequenceKV,
        max_kept_tokens: Sequence[int],
        timeout_seconds: float | None,
    ) -> Skeleton:
        """Ask the request's prefill workers in turn until one delivers the whole skeleton into `kv`.

        A worker that is away, full or sends damaged data is passed over; raises the last one's error when
        none is left, and at once for an error that any worker would give.
        """
        failure: StructKVError = UnavailableError("the request names no prefill worker")
        for target in request.prefill_targets:
            kv.rewind()
            try:
                return await self._fetch_from(target, request, kv, max_kept_tokens, timeout_seconds)
            except _TRY_NEXT as error:
                failure = error
                logger.warning(
                    "prefill worker failed",
                    extra={"request_id": request.request_id, "target": target, "error": str(error)},
                )
        raise failure

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()

    async def _fetch_from(
        self,
        target: str,
        request: decode_pb2.GenerateRequest,
        kv: SequenceKV,
        max_kept_tokens: Sequence[int],
        timeout_seconds: float | None,
    ) -> Skeleton:
        started = time.monotonic()
        reader = SkeletonReader(
            self._spec,
            len(request.prompt_token_ids),
            max_kept_tokens,
            Selection.from_pb(request.selection),
            device=self._pool.keys.device,
            dtype=self._pool.keys.dtype,
        )
        call = self._stub(target).Prefill(
            prefill_pb2.PrefillRequest(
                request_id=request.request_id,
                model_fingerprint=self._spec.fingerprint,
                prompt_token_ids=request.prompt_token_ids,
                selection=request.selection,
                priority=request.priority,
            ),
            timeout=timeout_seconds,
        )
        try:
            async for event in call:
                if event.HasField("header"):
                    reader.read_header(event.header)
                elif event.HasField("chunk"):
                    self._store(reader, event.chunk, kv)
                elif event.HasField("result"):
                    hidden_state = reader.read_result(event.result).to(self._pool.keys)
                    stats = self._stats(reader, event.result, time.monotonic() - started)
                    return Skeleton(hidden_state, stats)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        finally:
            call.cancel()
        raise SkeletonError(f"{target} ended the skeleton before its result")

    def _stub(self, target: str) -> "prefill_pb2_grpc.PrefillAsyncStub":
        if target not in self._channels:
            self._channels[target] = open_channel(target)
        return prefill_pb2_grpc.PrefillStub(self._channels[target])

    def _store(self, reader: SkeletonReader, message: skeleton_pb2.LayerChunk, kv: SequenceKV) -> None:
        chunk = reader.read_chunk(message)
        self._pool.write(kv.tables[chunk.layer], chunk.keys, chunk.values, chunk.positions or ())

    def _stats(
        self, reader: SkeletonReader, result: skeleton_pb2.PrefillResult, seconds: float
    ) -> decode_pb2.SkeletonStats:
        """Sum up; what neither waiting nor computing explains of the time is the transfer's."""
        return decode_pb2.SkeletonStats(
            pivot_layer=result.pivot_layer if result.HasField("pivot_layer") else None,
            kept_tokens_per_layer=reader.kept_tokens,
            skeleton_bytes=reader.num_bytes,
            full_kv_bytes=self._spec.full_kv_bytes(reader.prompt_tokens),
            queue_seconds=result.queue_seconds,
            prefill_seconds=result.prefill_seconds,
            transfer_seconds=max(0.0, seconds - result.queue_seconds - result.prefill_seconds),
        )
