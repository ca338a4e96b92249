"""Traces: spans that measured times become, and W3C's context over HTTP and gRPC.

This is OpenTelemetry's API alone: unless the process exports (`common.trace_export`), nothing is recorded, and what is
left of a span costs a microsecond. Spans carry names, counts and sizes, never text or token ids.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from common.errors import StructKVError

Attributes = Mapping[str, AttributeValue]
Metadata = tuple[tuple[str, str], ...]

_MAX_TRACESTATE = 512
"""What W3C asks to pass on of it; more would not fit beside the rest of a call's metadata."""
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("structkv")


def start_span(
    name: str,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    started: float | None = None,
) -> Span:
    """Return a running span, of the current one if no parent is given, since `started` (monotonic seconds)."""
    start_time = None if started is None else _epoch_ns(started)
    return _TRACER.start_span(name, context=parent, kind=kind, attributes=attributes, start_time=start_time)


def add_span(
    name: str, started: float, ended: float, attributes: Attributes | None = None, *, parent: Context | None = None
) -> Context:
    """Add a span of what has been measured, from and until (monotonic seconds); return it as a parent for others."""
    span = start_span(name, parent=parent, attributes=attributes, started=started)
    span.end(_epoch_ns(ended))
    return trace.set_span_in_context(span, parent)


@contextmanager
def call_span(method: str, target: str) -> Iterator[Span]:
    """Return the span of a call to `host:port`, which ends with the context. It is not the current one."""
    host, _, port = target.rpartition(":")
    span = start_span(method, kind=SpanKind.CLIENT, attributes={"rpc.system.name": "grpc", "rpc.method": method})
    span.set_attribute("server.address", host.strip("[]"))
    if port.isascii() and port.isdigit():  # a request may name anything as its prefill worker
        span.set_attribute("server.port", int(port))
    try:
        yield span
    except Exception as error:
        mark_failed(span, error)
        raise
    finally:
        span.end()


@contextmanager
def current(span: Span) -> Iterator[Span]:
    """Make a span the current one and end it with the context; an error that leaves the context marks it."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except asyncio.CancelledError:
            span.set_attribute("structkv.cancelled", True)
            raise
        except grpc.aio.AbortError:
            raise  # whoever aborted has said why
        except Exception as error:
            mark_failed(span, error)
            raise


def mark_failed(span: Span, error: Exception) -> None:
    """Say that a span failed, and with which class of error: its words might quote a prompt."""
    span.set_attribute("error.type", error.reason if isinstance(error, StructKVError) else type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


def context_from(headers: Mapping[str, str]) -> Context:
    """Return the caller's trace context from HTTP headers or gRPC metadata with lower-case names; empty if none."""
    names = ("traceparent", "tracestate")
    carrier = {name: headers[name] for name in names if name in headers}
    if len(carrier.get("tracestate", "")) > _MAX_TRACESTATE:
        del carrier["tracestate"]
    return _PROPAGATOR.extract(carrier, context=Context())


class _MetadataSetter(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key, value))


def metadata_of(span: Span) -> Metadata:
    """Return the gRPC metadata that makes a span the parent of the callee's."""
    carrier: list[tuple[str, str]] = []
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span), setter=_MetadataSetter())
    return tuple(carrier)


def trace_id_of(span: Span) -> str | None:
    """Return the id of a span's trace in hex; None without a trace."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _epoch_ns(seconds: float) -> int:
    """Return a moment of the monotonic clock as nanoseconds since the epoch."""
    return time.time_ns() - int((time.monotonic() - seconds) * 1e9)
