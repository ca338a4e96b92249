"""What is told of a request: to metrics, the trace and the log. The request's own code only says what happens.

Like the current span, a request's recorder is found through the context, from wherever it is handled.
"""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode

from common import tracing
from common.errors import InvalidRequestError, OverloadedError, StructKVError
from common.pb import decode_pb2
from services.gateway.call_recorder import CallRecorder
from services.gateway.metrics import GatewayMetrics

CURRENT: ContextVar["RequestRecorder"] = ContextVar("request_recorder")


def recorder() -> "RequestRecorder":
    """Return the current request's recorder; outside of one, a recorder of which nobody hears."""
    current = CURRENT.get(None)
    return current or RequestRecorder(_unheard(), trace.INVALID_SPAN, time.monotonic())


@cache
def _unheard() -> GatewayMetrics:
    return GatewayMetrics()


class RequestRecorder:
    """One request, from its arrival on."""

    def __init__(self, metrics: GatewayMetrics, span: Span, arrived: float, operation: str = "") -> None:
        """Take the request's span, whose end is its maker's affair, its arrival (monotonic seconds), and its kind."""
        self._metrics = metrics
        self._span = span
        self._operation = operation
        self._arrived = self._lap = arrived
        self._num_calls = 1
        self._num_started = 0
        self._prompt_tokens = 0
        self._accepted = False
        self._over = False
        self._finish_reasons: list[str] = []
        self._generated_tokens = 0

    def lap(self, name: str) -> None:
        """Add a span of what was done since the last one, or since the arrival."""
        now = time.monotonic()
        tracing.add_span(name, self._lap, now)
        self._lap = now

    def accepted(self, model: str, requests: Sequence[decode_pb2.GenerateRequest]) -> None:
        """Note what decode is going to be asked for, prompt by prompt."""
        self._num_calls, self._accepted = len(requests), True
        if not self._span.is_recording():
            return
        sampling, selection = requests[0].sampling, requests[0].selection
        self._span.update_name(f"{self._operation} {model}")
        self._span.set_attributes(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "structkv",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.request.top_p": sampling.top_p,
                "gen_ai.request.choice.count": len(requests[0].answers),
                "gen_ai.usage.input_tokens": sum(len(request.prompt_token_ids) for request in requests),
                "structkv.method": selection.method,
                "structkv.kv_retention": selection.kv_retention,
                "structkv.codec": selection.codec,
                "structkv.priority": requests[0].priority,
            }
        )

    def call(self, request: decode_pb2.GenerateRequest) -> CallRecorder:
        """Return the recorder of what decode is asked for one prompt."""
        return CallRecorder(self._metrics, len(request.prompt_token_ids), self._started)

    def _started(self, prompt_tokens: int) -> None:
        """Take a prompt's first token. A client gets to see its first when all prompts have theirs."""
        self._num_started += 1
        self._prompt_tokens += prompt_tokens
        if self._num_started < self._num_calls:
            return
        seconds = time.monotonic() - self._arrived
        self._metrics.ttft.observe(seconds)
        self._metrics.request_prompt_tokens.observe(self._prompt_tokens)
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        self._span.add_event("first token")

    def finished(self, finish_reason: str | None, num_tokens: int) -> None:
        """Note that nothing more comes of an answer; without a finish reason it was broken off."""
        self._generated_tokens += num_tokens
        if finish_reason is not None:
            self._finish_reasons.append(finish_reason)
            self._metrics.finished.labels(finish_reason).inc()
            self._metrics.request_generation_tokens.observe(num_tokens)

    def failed(self, error: Exception) -> None:
        """Note that the request is refused or failed. What is said first about its end counts."""
        if self._ends():
            reason = error.reason if isinstance(error, StructKVError) else StructKVError.reason
            self._metrics.rejected.labels(reason).inc()
            self._span.set_attribute("error.type", reason)
            if not isinstance(error, (InvalidRequestError, OverloadedError)):  # a 4xx is no failure of the server
                self._span.set_status(StatusCode.ERROR)

    def left(self) -> None:
        """Note that the client has left before its response was complete."""
        if self._ends():
            self._metrics.cancelled.inc()
            self._span.set_attribute("structkv.cancelled", True)

    def close(self, method: str, route: str, status: int) -> None:
        """Note that the response is over, whatever it was. Only what is a generation has a name of its own by then."""
        if route and not self._accepted:
            self._span.update_name(f"{method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if self._finish_reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", self._finish_reasons)
            if self._ends():
                self._metrics.e2e.observe(time.monotonic() - self._arrived)
        if self._generated_tokens:
            self._span.set_attribute("gen_ai.usage.output_tokens", self._generated_tokens)

    def _ends(self) -> bool:
        was_over, self._over = self._over, True
        return not was_over
