"""What is told of the answers to one prompt, whichever decode workers gave them."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from opentelemetry import trace
from opentelemetry.trace import Span

from common import tracing
from common.errors import StructKVError
from common.pb import decode_pb2
from services.gateway.metrics import GatewayMetrics

_METHOD = "structkv.v1.Decode/Generate"


class CallRecorder:
    """The calls for one prompt: an attempt is a span."""

    def __init__(self, metrics: GatewayMetrics, prompt_tokens: int, on_start: Callable[[int], None]) -> None:
        """Take how long the prompt is, and who is told of it with the first token."""
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._on_start = on_start
        self._last: dict[int, float] = {}
        self._span: Span = trace.INVALID_SPAN
        self._attempt = ExitStack()

    def attempt(self, target: str) -> tracing.Metadata:
        """Begin to ask a worker; return the metadata that carries the trace there."""
        self._span = self._attempt.enter_context(tracing.call_span(_METHOD, target))
        return tracing.metadata_of(self._span)

    def arrived(self, event: decode_pb2.GenerateEvent) -> None:
        """Take what a worker sent."""
        now = time.monotonic()
        self._metrics.generation_tokens.inc(len(event.token_ids))
        if not self._last:
            self._start(event.skeleton)
        elif event.answer in self._last:
            self._metrics.itl.observe(now - self._last[event.answer])
        self._last[event.answer] = now

    def _start(self, stats: decode_pb2.SkeletonStats) -> None:
        self._metrics.prompt_tokens.inc(self._prompt_tokens)
        self._metrics.cached_tokens.inc(stats.cached_tokens)
        self._span.add_event("first token")
        if self._span.is_recording():
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", stats.cached_tokens)
            self._span.set_attribute("structkv.skeleton_bytes", stats.skeleton_bytes)
            self._span.set_attribute("structkv.transport", stats.transport)
        self._on_start(self._prompt_tokens)

    def failed_over(self, error: StructKVError, phase: str) -> None:
        """Note that the worker is passed over, before the first token or in the middle of the answers."""
        self._metrics.failovers.labels(phase).inc()
        tracing.mark_failed(self._span, error)
        trace.get_current_span().add_event("failover", {"structkv.phase": phase, "error.type": error.reason})
        self.close()

    def blamed(self) -> None:
        """Note that a worker rests, since it failed where another one did not."""
        self._metrics.rests.inc()

    def close(self) -> None:
        """End the attempt that is running, if one is."""
        self._attempt.close()
