"""What a prefill worker measures, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.metrics import SECONDS
from services.prefill.phases import PHASES
from services.prefill.scheduler import PrefillScheduler

_STORE_REASONS = ("failed", "full")
_REJECT_REASONS = ("context_length", "internal", "invalid", "overloaded", "skeleton")


class PrefillMetrics:
    """One worker's metrics, in a registry of its own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._prompts = Gauge(
            "structkv_prefill_prompts", "Prompts that are taken in and not yet finished", registry=registry
        )
        self._waiting_tokens = Gauge(
            "structkv_prefill_waiting_tokens", "Tokens of the prompts taken in and not yet finished", registry=registry
        )
        self.tokens = Counter("structkv_prefill_tokens", "Prompt tokens prefilled", registry=registry)
        self.phase_seconds = Histogram(
            "structkv_prefill_phase_seconds",
            "Time of a finished prompt in each phase",
            ["phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "structkv_prefill_rejected", "Prompts refused or failed", ["reason"], registry=registry
        )
        self._store_fallbacks = Counter(
            "structkv_store_fallbacks",
            "Skeletons that went on inline because the store failed or was full",
            ["reason"],
            registry=registry,
        )
        for phase in PHASES:
            self.phase_seconds.labels(phase)
        for reason in _REJECT_REASONS:
            self._rejected.labels(reason)
        for reason in _STORE_REASONS:
            self._store_fallbacks.labels(reason)

    def watch(self, scheduler: PrefillScheduler) -> None:
        """Read the gauges from a scheduler, whenever they are scraped."""
        self._prompts.set_function(lambda: scheduler.num_jobs)
        self._waiting_tokens.set_function(lambda: scheduler.num_tokens)

    def refused(self, reason: str) -> None:
        """Count a prompt that was refused or failed."""
        self._rejected.labels(reason).inc()

    def fell_back(self, reason: str) -> None:
        """Count a skeleton that goes on inline."""
        self._store_fallbacks.labels(reason).inc()
