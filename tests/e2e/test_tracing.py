"""One trace and one log of a request through three processes, as an operator's collector receives them.

The processes export with a delay of ten minutes, and are stopped before anybody looks: what has arrived was flushed.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.collector import Collected, Collector, collecting
from tests.e2e.conftest import free_port
from tests.e2e.processes import Process, small_model, wait_for

PROMPT = [3 + (i * i * 31 + i * 7) % 40_000 for i in range(7000)]
SELECTION = {"pivot_layer": 3, "kv_retention": 0.1, "struct_retention": 0.2}
WORD = "heliotrope"
MAX_TOKENS = 8
SERVICES = {"structkv-gateway", "structkv-decode", "structkv-prefill"}
LINE = (
    "gateway.receive",
    "gateway.tokenize",
    "decode.wait_for_memory",
    "prefill.queue",
    "prefill.layers_to_pivot",
    "prefill.layers_after_pivot",
    "skeleton.transfer",
    "decode.first_token",
)
"""The spans that TTFT is made of, in their order."""


@dataclass
class Story:
    """What was asked, by the trace id that the client gave, and what came of it."""

    collector: Collector
    long: list[str] = field(default_factory=list)
    said: str = ""
    unsampled: str = ""
    logs: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    raw_logs: str = ""

    def span(self, trace_id: str, name: str, kind: int | None = None) -> Collected:
        (found,) = (
            collected
            for collected in self.collector.trace(trace_id)
            if collected.name == name and kind in {None, collected.span.kind}
        )
        return found


def processes(folder: Path, endpoint: str) -> list[Process]:
    model = ["--model", str(small_model(folder / "model"))]
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    prefill = Process("prefill", model, folder / "prefill.log", environment=environment)
    decode = Process("decode", [*model, "--kv-memory-gib", "0.1"], folder / "decode.log", environment=environment)
    flags = [*model, "--served-model-name", "small"]
    flags += ["--prefill-workers", prefill.address, "--decode-workers", decode.address]
    return [prefill, decode, Process("gateway", flags, folder / "gateway.log", environment=environment)]


def ask(url: str, *, sampled: bool = True, **body: object) -> str:
    """Send a request in a trace of the client's own; return its id."""
    trace_id = secrets.token_hex(16)
    headers = {
        "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{'01' if sampled else '00'}",
        "X-Request-Id": f"request-{trace_id}",
    }
    body = {"model": "small", "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True} | body
    reply = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.headers["X-Trace-Id"] == trace_id
    return trace_id


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("tracing")
    with collecting() as (collector, endpoint):
        running = processes(folder, endpoint)
        try:
            for process in running:
                process.start()
            for process in running:
                process.wait_until_serving()
            story, url = Story(collector), f"http://{running[-1].address}"
            for shift in range(6):
                prompt = [token + shift for token in PROMPT]
                story.long.append(ask(url, prompt=prompt, structkv=SELECTION, stream=True))
            story.said = ask(url, prompt=WORD)
            story.unsampled = ask(url, prompt=WORD, sampled=False)
            assert collector.spans == []
            assert [process.stop() for process in reversed(running)] == [0, 0, 0]
        finally:
            for process in running:
                process.kill()
        for process in running:
            text = process.log.read_text()
            story.raw_logs += text
            story.logs[process.kind] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        yield story


def test_a_request_is_one_trace_through_three_services(story: Story) -> None:
    for trace_id in (*story.long, story.said):
        assert {collected.service for collected in story.collector.trace(trace_id)} == SERVICES


def test_spans_hang_where_they_belong(story: Story) -> None:
    (trace_id, *_) = story.long
    root = story.span(trace_id, "text_completion small", Span.SPAN_KIND_SERVER)
    generate = story.span(trace_id, "structkv.v1.Decode/Generate", Span.SPAN_KIND_CLIENT)
    decode = story.span(trace_id, "structkv.v1.Decode/Generate", Span.SPAN_KIND_SERVER)
    load = story.span(trace_id, "decode.load_skeleton")
    ask_prefill = story.span(trace_id, "structkv.v1.Prefill/Prefill", Span.SPAN_KIND_CLIENT)
    prefill = story.span(trace_id, "structkv.v1.Prefill/Prefill", Span.SPAN_KIND_SERVER)
    parents = [
        (generate, root),
        (decode, generate),
        (load, decode),
        (ask_prefill, load),
        (prefill, ask_prefill),
        (story.span(trace_id, "gateway.tokenize"), root),
        (story.span(trace_id, "decode.wait_for_memory"), decode),
        (story.span(trace_id, "prefill.layers_to_pivot"), prefill),
        (story.span(trace_id, "skeleton.transfer"), load),
        (story.span(trace_id, "decode.first_token"), decode),
        (story.span(trace_id, "decode.tokens"), decode),
    ]
    for child, parent in parents:
        assert child.span.parent_span_id == parent.span.span_id, child.name
        assert child.span.start_time_unix_nano >= parent.span.start_time_unix_nano - 1_000_000
    assert root.span.parent_span_id


def test_spans_tell_what_was_kept_and_sent(story: Story) -> None:
    (trace_id, *_) = story.long
    load = story.span(trace_id, "decode.load_skeleton").attributes
    assert load["structkv.transport"] == "inline"
    assert load["structkv.codec"] == "int8"
    assert load["structkv.pivot_layer"] == SELECTION["pivot_layer"]
    assert load["structkv.kept_tokens"] == len(PROMPT) * SELECTION["kv_retention"]
    assert 0 < load["structkv.skeleton_bytes"] < load["structkv.full_kv_bytes"]
    root = story.span(trace_id, "text_completion small").attributes
    assert root["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert root["gen_ai.usage.output_tokens"] == MAX_TOKENS
    tokens = story.span(trace_id, "decode.tokens").attributes
    assert tokens == {"structkv.tokens": MAX_TOKENS, "structkv.steps": MAX_TOKENS}


def test_ttft_can_be_taken_apart(story: Story) -> None:
    shares = []
    for trace_id in story.long:
        ttft = story.span(trace_id, "text_completion small").attributes["gen_ai.response.time_to_first_chunk"]
        shares.append(sum(story.span(trace_id, name).seconds for name in LINE) / ttft)
    assert max(shares) <= 1.01
    assert max(shares) > 0.95, shares  # what is left are hops between processes, longer where the machine is busy


def test_a_stage_of_prefill_is_the_sum_of_its_phases(story: Story) -> None:
    for trace_id in story.long:
        for name in ("prefill.layers_to_pivot", "prefill.layers_after_pivot"):
            stage = story.span(trace_id, name)
            phases = [
                collected
                for collected in story.collector.trace(trace_id)
                if collected.span.parent_span_id == stage.span.span_id
            ]
            assert {"prefill.compute", "prefill.select", "prefill.encode"} <= {phase.name for phase in phases}
            assert sum(phase.seconds for phase in phases) == pytest.approx(stage.seconds, abs=1e-4)


def test_a_caller_that_does_not_sample_is_heeded(story: Story) -> None:
    assert story.collector.trace(story.unsampled) == []


def test_what_was_said_is_in_no_span_and_no_log(story: Story) -> None:
    assert WORD not in "".join(str(collected.span) for collected in story.collector.spans)
    assert WORD not in story.raw_logs
    assert str(PROMPT[:5])[1:-1] not in story.raw_logs


@pytest.mark.parametrize(
    ("service", "message"),
    [("gateway", "answer ended"), ("gateway", "request"), ("decode", "request done"), ("prefill", "prompt done")],
)
def test_every_services_records_name_the_request_and_its_trace(story: Story, service: str, message: str) -> None:
    for trace_id in (*story.long, story.said, story.unsampled):
        (record,) = (
            record
            for record in story.logs[service]
            if record["message"] == message and record["request_id"] == f"request-{trace_id}"
        )
        assert record["trace_id"] == trace_id
        assert record["service"] == service
        if trace_id != story.unsampled:
            spans = {c.span.span_id.hex(): c.service for c in story.collector.trace(trace_id)}
            assert spans[record["span_id"]] == f"structkv-{service}"


def test_all_that_a_process_writes_is_json(story: Story) -> None:
    lines = [line for line in story.raw_logs.splitlines() if line]
    assert [line for line in lines if not line.startswith("{")] == []
    assert any(record["logger"].startswith("uvicorn") for record in story.logs["gateway"])


class HttpCollector(BaseHTTPRequestHandler):
    """OTLP over HTTP."""

    received: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def gateway(tmp_path: Path, **environment: str) -> Process:
    flags = ["--prefill-workers", "127.0.0.1:1", "--decode-workers", "127.0.0.1:1"]
    process = Process("gateway", flags, tmp_path / "gateway.log", environment=environment)
    process.start()
    wait_for(lambda: answers(process))
    return process


def answers(process: Process) -> bool:
    try:
        return httpx.get(f"http://{process.address}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_spans_go_over_http_where_the_variable_says_so(tmp_path: Path) -> None:
    HttpCollector.received = Collector()
    with HTTPServer(("127.0.0.1", 0), HttpCollector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        process = gateway(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_SERVICE_NAME="front",
        )
        try:
            httpx.get(f"http://{process.address}/v1/models")
            assert process.stop() == 0
        finally:
            process.kill()
            server.shutdown()
    (collected,) = HttpCollector.received.spans  # and none of the framework's own
    assert (collected.service, collected.name) == ("front", "GET /v1/models")


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_SAMPLER": "always_off"}])
def test_the_standard_variables_switch_it_off(tmp_path: Path, off: dict[str, str]) -> None:
    with collecting() as (collector, endpoint):
        process = gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **off)
        try:
            httpx.get(f"http://{process.address}/v1/models")
            assert process.stop() == 0
        finally:
            process.kill()
    assert collector.spans == []


def test_a_collector_that_is_away_costs_no_request(tmp_path: Path) -> None:
    process = gateway(
        tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", OTEL_BSP_SCHEDULE_DELAY="50"
    )
    try:
        for _ in range(20):
            assert httpx.get(f"http://{process.address}/v1/models", timeout=5).status_code == 200
        assert process.stop() == 0
    finally:
        process.kill()
