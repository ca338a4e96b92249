"""A collector of traces: OTLP's own gRPC service, which keeps what it is sent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Collected:
    """One span as it arrived, and the service that sent it."""

    service: str
    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def seconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e9

    @property
    def attributes(self) -> dict[str, object]:
        return {entry.key: _value(entry) for entry in self.span.attributes}


def _value(entry: KeyValue) -> object:
    kind = entry.value.WhichOneof("value")
    return None if kind is None else getattr(entry.value, kind)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span, in the order of arrival."""

    def __init__(self) -> None:
        self.spans: list[Collected] = []

    def Export(self, request, context):
        self.take(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def take(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            names = {entry.key: _value(entry) for entry in resource.resource.attributes}
            self.spans += [
                Collected(str(names["service.name"]), span) for scope in resource.scope_spans for span in scope.spans
            ]

    def trace(self, trace_id: str) -> list[Collected]:
        return [collected for collected in self.spans if collected.trace_id == trace_id]


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Yield a running collector and its endpoint."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
