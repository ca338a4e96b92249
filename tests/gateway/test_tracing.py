"""A request's trace in the gateway: whose it is, what it says, and what it keeps to itself."""

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, ScriptedDecode, StartGateway, events, grpc_worker

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
WORD = "heliotrope"


class Seeing(ScriptedDecode):
    """Remembers the metadata that it is called with."""

    metadata: dict[str, str]

    async def Generate(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        await super().Generate(request, context)


def root_of(spans: InMemorySpanExporter) -> ReadableSpan:
    (root,) = (span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER)
    return root


async def test_a_request_is_part_of_its_clients_trace_and_takes_it_on(
    start_gateway: StartGateway, spans: InMemorySpanExporter
) -> None:
    decode = Seeing(events([10, 11, 12]))
    async with grpc_worker(decode) as address:
        gateway = await start_gateway(decode_workers=address)
        body = {"model": DEFAULT_MODEL, "prompt": WORD, "max_tokens": 3, "temperature": 0.5}
        headers = TRACEPARENT | {"tracestate": "vendor=1"}
        reply = await gateway.http.post("/v1/completions", json=body, headers=headers)
    root = root_of(spans)
    (call,) = (span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT)
    assert f"{root.context.trace_id:032x}" == TRACE_ID == reply.headers["X-Trace-Id"]
    assert f"{root.parent.span_id:016x}" == SPAN_ID
    assert call.parent.span_id == root.context.span_id
    assert decode.metadata["traceparent"] == f"00-{TRACE_ID}-{call.context.span_id:016x}-01"
    assert decode.metadata["tracestate"] == "vendor=1"
    assert root.name == f"text_completion {DEFAULT_MODEL}"
    described = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "structkv",
        "gen_ai.request.model": DEFAULT_MODEL,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "structkv.method": "structkv",
        "structkv.codec": "int8",
    }
    assert described.items() <= dict(root.attributes).items()
    assert root.attributes["gen_ai.usage.input_tokens"] > 0
    assert root.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert WORD not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_a_tracestate_that_is_too_long_for_a_call_stays_here(
    start_gateway: StartGateway, spans: InMemorySpanExporter
) -> None:
    decode = Seeing(events([10]))
    async with grpc_worker(decode) as address:
        gateway = await start_gateway(decode_workers=address)
        headers = TRACEPARENT | {"tracestate": ",".join(f"vendor{number}={'x' * 250}" for number in range(32))}
        body = {"model": DEFAULT_MODEL, "prompt": "Once"}
        assert (await gateway.http.post("/v1/completions", json=body, headers=headers)).status_code == 200
    assert TRACE_ID in decode.metadata["traceparent"]
    assert "tracestate" not in decode.metadata


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", "00-" + "f" * 5000, "\x00"])
async def test_a_header_that_is_none_begins_a_trace_of_our_own(
    gateway: Gateway, spans: InMemorySpanExporter, traceparent: str
) -> None:
    reply = await gateway.http.get("/v1/models", headers={"traceparent": traceparent.encode()})
    assert reply.status_code == 200
    root = root_of(spans)
    assert root.parent is None
    assert root.name == "GET /v1/models"


async def test_without_a_collector_there_is_no_trace(gateway: Gateway) -> None:
    assert "X-Trace-Id" not in (await gateway.complete()).headers


async def test_a_failover_is_an_event_and_each_attempt_a_span(
    start_gateway: StartGateway, spans: InMemorySpanExporter
) -> None:
    script = events([10, 11, 12])
    failing = ScriptedDecode([*script[:2], grpc.StatusCode.UNAVAILABLE])
    async with grpc_worker(failing) as first, grpc_worker(ScriptedDecode(script)) as second:
        gateway = await start_gateway(decode_workers=f"{first},{second}")
        assert (await gateway.complete(stream=True)).status_code == 200
    root = root_of(spans)
    attempts = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert attempts[0].attributes["error.type"] == "unavailable"
    assert {span.parent.span_id for span in attempts} == {root.context.span_id}
    (event,) = (event for event in root.events if event.name == "failover")
    assert dict(event.attributes) == {"structkv.phase": "answer", "error.type": "unavailable"}
    assert root.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("step", "reason", "failed"),
    [(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", False), (grpc.StatusCode.INTERNAL, "internal", True)],
)
async def test_what_is_refused_says_why(
    gateway: Gateway, spans: InMemorySpanExporter, step: grpc.StatusCode, reason: str, failed: bool
) -> None:
    gateway.decode.script = [step]
    await gateway.complete()
    root = root_of(spans)
    assert root.attributes["error.type"] == reason
    assert (root.status.status_code is StatusCode.ERROR) == failed


async def test_the_clients_words_are_no_names(gateway: Gateway, spans: InMemorySpanExporter) -> None:
    await gateway.http.request(WORD.upper(), f"/v1/{WORD}", params={"q": WORD})
    await gateway.complete(model=WORD)
    assert WORD not in "".join(span.to_json() for span in spans.get_finished_spans()).lower()


async def test_monitors_leave_no_spans(gateway: Gateway, spans: InMemorySpanExporter) -> None:
    for path in ("/health", "/ready", "/metrics"):
        await gateway.http.get(path)
    assert spans.get_finished_spans() == ()
