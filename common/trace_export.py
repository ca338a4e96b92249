"""Where spans go: to a collector, over OTLP, as OpenTelemetry's own variables say. Without an endpoint, nowhere."""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    OTEL_SDK_DISABLED,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_FLUSH_SECONDS = 5.0
"""How long a process that ends waits for a collector to take the last spans."""


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Export this process's spans while the context lasts, if the environment names a collector.

    At the end the last ones are sent. A collector that is away costs spans, and at most a few seconds at the end.
    """
    if not _wanted():
        yield
        return
    provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)


def _wanted() -> bool:
    environment = os.environ
    if environment.get(OTEL_SDK_DISABLED, "").lower() == "true" or environment.get(OTEL_TRACES_EXPORTER) == "none":
        return False
    return bool(environment.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or environment.get(OTEL_EXPORTER_OTLP_ENDPOINT))


def _exporter() -> SpanExporter:
    # Imported only where they are used: each brings a client of its own.
    default = os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL, "grpc")
    if os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, default) == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OTLPSpanExporter()


def _resource(service: str) -> Resource:
    known = {
        "service.name": f"structkv-{service}",
        "service.version": version("structkv"),
        "service.instance.id": uuid.uuid4().hex,
    }
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say it better.
    return Resource.create({**known, **OTELResourceDetector().detect().attributes})
