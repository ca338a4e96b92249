"""What a decode worker measures, for Prometheus."""

from collections.abc import Callable
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.metrics import SECONDS, STEP_SECONDS, TOKENS
from common.pb import decode_pb2
from common.skeleton.selection import CODECS
from services.decode.pool import KVPool
from services.decode.scheduler import DecodeScheduler

_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_BYTES = tuple(float(4**power) for power in range(6, 18))
_RATIOS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0)
_LAYERS = tuple(range(1, 129))
_TRANSPORTS = ("inline", "redis")
_STORE_REASONS = ("damaged", "failed", "lost")
_PREFILL_REASONS = ("aborted", "data_loss", "internal", "resource_exhausted", "unavailable")


class DecodeMetrics:
    """One worker's metrics, in a registry of its own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        self._queue = self._histogram("structkv_request_queue_time_seconds", "Waiting for memory and prefill", SECONDS)
        self._prefill = self._histogram("structkv_request_prefill_time_seconds", "Computing a prompt", SECONDS)
        self._decode = self._histogram("structkv_request_decode_time_seconds", "First token to last", SECONDS)
        self._step = self._histogram("structkv_decode_step_seconds", "One token for each in the batch", STEP_SECONDS)
        self._batch = self._histogram("structkv_decode_batch_size", "Sequences in a step", _BATCH_SIZES)
        self._bytes = self._histogram("structkv_skeleton_bytes", "Keys and values as sent", _BYTES, "codec")
        self._ratio = self._histogram("structkv_skeleton_ratio", "Skeleton over the whole cache in bfloat16", _RATIOS)
        self._transfer = self._histogram(
            "structkv_transfer_seconds", "What the transfer adds until the skeleton is whole", SECONDS, "transport"
        )
        self._transferred = self._counter(
            "structkv_transfer_bytes", "Keys and values of skeletons received", "transport", "codec"
        )
        self._kept = self._histogram("structkv_kept_tokens", "Tokens kept per layer, a prompt's mean", TOKENS)
        self._pivot = self._histogram("structkv_pivot_layer", "Layers that saw the whole prompt", _LAYERS)
        self._store_fallbacks = self._counter(
            "structkv_store_fallbacks", "Skeletons that the store failed, had lost or damaged", "reason"
        )
        self._reused = self._counter("structkv_skeletons_reused", "Prompts that skipped prefill: it was in the store")
        self._prefill_failovers = self._counter(
            "structkv_prefill_failovers", "Prefill workers passed over before a skeleton was complete", "reason"
        )
        self._begin_at_zero()

    def watch(self, scheduler: DecodeScheduler, pool: KVPool) -> None:
        """Read the gauges from the scheduler and its memory, whenever they are scraped."""
        blocks = pool.allocator
        self._gauge("structkv_num_requests_running", "Requests that have memory", lambda: scheduler.num_running)
        self._gauge("structkv_num_requests_waiting", "Requests that wait for memory", lambda: scheduler.num_waiting)
        self._gauge("structkv_num_requests_swapped", "Requests moved to host memory", lambda: scheduler.num_swapped)
        self._gauge("structkv_kv_blocks_total", "Blocks of the KV memory", lambda: blocks.num_blocks)
        self._gauge("structkv_kv_blocks_used", "Blocks that requests hold", lambda: blocks.num_blocks - blocks.num_free)
        self._gauge(
            "structkv_kv_cache_usage_ratio",
            "Share of the blocks that requests hold",
            lambda: 1 - blocks.num_free / blocks.num_blocks,
        )

    def stepped(self, seconds: float, batch_size: int) -> None:
        """Count a step of the batch."""
        self._step.observe(seconds)
        self._batch.observe(batch_size)

    def loaded(self, stats: decode_pb2.SkeletonStats, codec: str) -> None:
        """Count a skeleton that is whole."""
        self._queue.observe(stats.queue_seconds)
        if stats.cached_tokens:
            self._reused.inc()
        else:
            self._prefill.observe(stats.prefill_seconds)
        self._bytes.labels(codec).observe(stats.skeleton_bytes)
        self._ratio.observe(stats.skeleton_bytes / stats.full_kv_bytes)
        self._transfer.labels(stats.transport).observe(stats.transfer_seconds)
        self._transferred.labels(stats.transport, codec).inc(stats.skeleton_bytes)
        kept = stats.kept_tokens_per_layer
        self._kept.observe(sum(kept) / len(kept))
        if stats.HasField("pivot_layer"):
            self._pivot.observe(stats.pivot_layer)

    def decoded(self, seconds: float) -> None:
        """Count a request whose last token is there, so many seconds after its first."""
        self._decode.observe(seconds)

    def fell_back(self, reason: str) -> None:
        """Count a skeleton that the store was of no use for."""
        self._store_fallbacks.labels(reason).inc()

    def failed_over(self, reason: str) -> None:
        """Count a prefill worker that was passed over."""
        self._prefill_failovers.labels(reason).inc()

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(read)

    def _begin_at_zero(self) -> None:
        """Have what may be counted one day counted from 0 on: a series that begins at 1 has no rate."""
        for codec in CODECS:
            self._bytes.labels(codec)
        for transport in _TRANSPORTS:
            self._transfer.labels(transport)
        for transport, codec in product(_TRANSPORTS, CODECS):
            self._transferred.labels(transport, codec)
        for reason in _STORE_REASONS:
            self._store_fallbacks.labels(reason)
        for reason in _PREFILL_REASONS:
            self._prefill_failovers.labels(reason)
