"""What is told of a request in decode: to metrics, the trace and the log."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from common import tracing
from common.pb import decode_pb2
from services.decode.metrics import DecodeMetrics

logger = logging.getLogger(__name__)


class RequestRecord:
    """One request's times, from its arrival on."""

    def __init__(self, metrics: DecodeMetrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._arrived = self._loaded = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._num_left = 0
        self._tokens: Counter[int] = Counter()
        self._stats = decode_pb2.SkeletonStats()

    def admitted(self) -> float:
        """Note that there is memory; return the seconds that the request waited for it."""
        now = time.monotonic()
        tracing.add_span("decode.wait_for_memory", self._arrived, now)
        return now - self._arrived

    def loaded(self, stats: decode_pb2.SkeletonStats, codec: str) -> None:
        """Note that the skeleton is whole. The transfer's span is what it added, at the end of the loading."""
        self._loaded, self._stats = time.monotonic(), stats
        self._metrics.loaded(stats, codec)
        span = trace.get_current_span()
        if not span.is_recording():
            return
        attributes: dict[str, str | int | float] = {
            "structkv.transport": stats.transport,
            "structkv.codec": codec,
            "structkv.skeleton_bytes": stats.skeleton_bytes,
        }
        tracing.add_span("skeleton.transfer", self._loaded - stats.transfer_seconds, self._loaded, attributes)
        attributes["structkv.kept_tokens"] = sum(stats.kept_tokens_per_layer) / len(stats.kept_tokens_per_layer)
        attributes["structkv.full_kv_bytes"] = stats.full_kv_bytes
        attributes["structkv.reused_tokens"] = stats.cached_tokens
        if stats.HasField("pivot_layer"):
            attributes["structkv.pivot_layer"] = stats.pivot_layer
        span.set_attributes(attributes)

    def token(self, answer: int, *, is_last: bool) -> None:
        """Note a token of one of the request's answers. With all answers' last tokens the request is counted.

        Here and not behind the token's way out: a gateway that has what it wants leaves at once.
        """
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
            tracing.add_span("decode.first_token", self._loaded, self._first)
        self._tokens[answer] += 1
        self._num_left -= is_last
        if self._num_left == 0:
            self._metrics.decoded(self._last - self._first)
            self._log(self._last - self._first)

    @contextmanager
    def decoding(self, num_answers: int) -> Iterator[None]:
        """Take so many answers' tokens while the context lasts; their span is added however it ends."""
        self._num_left = num_answers
        try:
            yield
        finally:
            if self._first is not None:
                counts = self._tokens.values()
                attributes = {"structkv.tokens": sum(counts), "structkv.steps": max(counts)}
                tracing.add_span("decode.tokens", self._first, self._last, attributes)

    def _log(self, decode_seconds: float) -> None:
        logger.info(
            "request done",
            extra={
                "prompt_tokens": self._prompt_tokens,
                "tokens": sum(self._tokens.values()),
                "queue_seconds": round(self._stats.queue_seconds, 4),
                "prefill_seconds": round(self._stats.prefill_seconds, 4),
                "transfer_seconds": round(self._stats.transfer_seconds, 4),
                "decode_seconds": round(decode_seconds, 4),
            },
        )
