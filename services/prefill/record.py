"""What is told of a prompt when it is over: to metrics, the trace and the log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple

from opentelemetry import trace

from services.prefill.metrics import PrefillMetrics
from services.prefill.phases import PHASES, Phases

logger = logging.getLogger(__name__)


@contextmanager
def recorded(prompt_tokens: int, metrics: PrefillMetrics) -> Iterator[Phases]:
    """Give a prompt its phases. Spans are added however it ends; it counts if it was computed to its end.

    Then it does not matter how the call ends: decode leaves as soon as it has the result.
    """
    phases = Phases()
    try:
        yield phases
    finally:
        _describe(prompt_tokens, phases)
        if phases.finished:
            _count(prompt_tokens, phases, metrics)


def _count(prompt_tokens: int, phases: Phases, metrics: PrefillMetrics) -> None:
    seconds = dict(zip(PHASES, (*astuple(phases.total()), phases.send), strict=True))
    metrics.tokens.inc(prompt_tokens)
    for phase, spent in seconds.items():
        metrics.phase_seconds.labels(phase).observe(spent)
    rounded = {f"{phase}_seconds": round(spent, 4) for phase, spent in seconds.items()}
    logger.info("prompt done", extra={"prompt_tokens": prompt_tokens, **rounded})


def _describe(prompt_tokens: int, phases: Phases) -> None:
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("structkv.prompt_tokens", prompt_tokens)
    span.set_attribute("structkv.send_seconds", phases.send)
    if phases.pivot_layer is not None:
        span.set_attribute("structkv.pivot_layer", phases.pivot_layer)
    phases.add_spans()


@contextmanager
def sending(phases: Phases) -> Iterator[None]:
    """Count the time of the context as the prompt's sending."""
    started = time.monotonic()
    try:
        yield
    finally:
        phases.send += time.monotonic() - started
