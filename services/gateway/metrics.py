"""What the gateway measures, for Prometheus."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.metrics import SECONDS, STEP_SECONDS, TOKENS
from services.gateway.workers.routing import WorkerPool

_FINISH_REASONS = ("stop", "length", "tool_calls")
_FAILOVER_PHASES = ("first token", "answer")
_INTAKE_END_REASONS = ("turn", "left", "time", "died")
_REJECT_REASONS = (
    *("invalid", "too_large", "too_slow", "media_type", "unauthorized", "model_not_found", "context_length"),
    *("overloaded", "unavailable", "draining", "deadline", "skeleton", "internal"),
)


class GatewayMetrics:
    """One gateway's metrics, in a registry of its own unless one is given.

    Attributes:
        registry: what is served at /metrics.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.in_flight = Gauge(
            "structkv_requests_in_flight", "Requests that are being answered", registry=self.registry
        )
        self.finished = self._counter("structkv_request_success", "Answers that came to their end", "finish_reason")
        self.rejected = self._counter("structkv_requests_rejected", "Requests refused or failed", "reason")
        self.cancelled = self._counter(
            "structkv_requests_cancelled", "Requests whose clients left before their answers ended"
        )
        self.prompt_tokens = self._counter("structkv_prompt_tokens", "Tokens of prompts that were prefilled or reused")
        self.cached_tokens = self._counter("structkv_cached_prompt_tokens", "Those that no prefill had to run")
        self.generation_tokens = self._counter("structkv_generation_tokens", "Tokens of answers")
        self.failovers = self._counter(
            "structkv_decode_failovers",
            "Decode workers passed over, before an answer's first token or in its middle",
            "phase",
        )
        self.rests = self._counter(
            "structkv_decode_worker_rests", "Times a decode worker that failed where another did not is asked last"
        )
        self.request_prompt_tokens = self._histogram(
            "structkv_request_prompt_tokens", "Prompt tokens of a request", TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "structkv_request_generation_tokens", "Tokens of a finished answer", TOKENS
        )
        self.ttft = self._histogram(
            "structkv_time_to_first_token_seconds", "From a request's arrival to its first token", SECONDS
        )
        self.itl = self._histogram(
            "structkv_inter_token_latency_seconds", "Between two tokens of an answer", STEP_SECONDS
        )
        self.e2e = self._histogram(
            "structkv_e2e_request_latency_seconds", "From a request's arrival to the end of its answers", SECONDS
        )
        self.intake_requests = Gauge(
            "structkv_intake_requests", "Requests that are read or wait to be read apart", registry=self.registry
        )
        self.intake_seconds = self._histogram(
            "structkv_intake_seconds", "From such a request's last byte until it is read", SECONDS
        )
        self.intake_broken_off = self._counter(
            "structkv_intake_broken_off", "Requests whose reading ended early", "reason"
        )
        self._begin_at_zero()

    def watch(self, *pools: WorkerPool) -> None:
        """Read from the pools, whenever it is scraped, which workers there are."""
        workers = Gauge("structkv_workers", "Workers that are known", ["kind", "state"], registry=self.registry)
        for pool in pools:
            workers.labels(pool.kind, "serving").set_function(partial(pool.count, healthy=True))
            workers.labels(pool.kind, "unreachable").set_function(partial(pool.count, healthy=False))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """Have what may be counted one day counted from 0 on: a series that begins at 1 has no rate."""
        for counter, values in (
            (self.finished, _FINISH_REASONS),
            (self.rejected, _REJECT_REASONS),
            (self.failovers, _FAILOVER_PHASES),
            (self.intake_broken_off, _INTAKE_END_REASONS),
        ):
            for value in values:
                counter.labels(value)
