"""The backend that asks a service, over a transport that plays one."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from common.errors import UnavailableError
from evaluation import remote
from evaluation.prompt import PromptFormat
from evaluation.remote import RemoteBackend
from evaluation.sample import Sample
from evaluation.variants import parse

STATS = {
    "kept_tokens_per_layer": [100, 200],
    "skeleton_bytes": 4000,
    "prefill_seconds": 1.5,
    "ttft_seconds": 0.0,
    "pivot_layer": 12,
}
VARIANTS = parse(["full", "snapkv:pool_tokens=9"], [0.1], [])


def answer(text: str = "so") -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"text": text}], "structkv": STATS})


@dataclass
class Service:
    """Plays a list of replies, then answers; remembers what it was asked and how many at once."""

    replies: list[httpx.Response] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    respond: Callable[[dict[str, object]], httpx.Response] = field(default=lambda body: answer())
    most_at_once: int = 0
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "served"}]})
        body = json.loads(request.content)
        with self._lock:
            self.bodies.append(body)
            reply = self.replies.pop(0) if self.replies else None
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            return reply or self.respond(body)
        finally:
            with self._lock:
                self._running -= 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    return slept


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, prompts: PromptFormat) -> Callable[..., RemoteBackend]:
    client = httpx.Client

    def build(
        service: Callable[[httpx.Request], httpx.Response], concurrency: int = 1, api_key: str = ""
    ) -> RemoteBackend:
        transport = httpx.MockTransport(service)
        monkeypatch.setattr(remote.httpx, "Client", lambda **kinds: client(transport=transport, **kinds))
        return RemoteBackend(url="http://service:8000/v1/", concurrency=concurrency, prompts=prompts, api_key=api_key)

    return build


def samples(count: int) -> list[Sample]:
    return [Sample("vt", 2048, index, "one two three", "It is", ("x",), 30) for index in range(count)]


def test_a_request_says_what_is_wanted_and_the_answer_says_what_was_kept(
    backend: Callable[..., RemoteBackend],
) -> None:
    service = Service()
    asked = backend(service)
    found = list(asked.run([(samples(1)[0], VARIANTS)]))
    assert [variant.label for _, variant, _ in found] == ["full", "snapkv:pool_tokens=9"]
    assert service.bodies[1] == {
        "model": "served",
        "prompt": [0] * 5,
        "temperature": 0,
        "max_tokens": 30,
        "structkv": {"method": "snapkv", "pool_tokens": 9, "kv_retention": 0.1, "return_stats": True},
    }
    got = found[1][2]
    assert (got.text, got.prompt_tokens, got.kept_tokens, got.skeleton_bytes) == ("so", 5, 150, 4000)
    assert (got.prefill_seconds, got.pivot_layer) == (1.5, 12)
    assert asked.description == {"service": "http://service:8000", "model": "served"}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_when_it_says(
    status: int, backend: Callable[..., RemoteBackend], waits: list[float]
) -> None:
    busy = [httpx.Response(status, headers={"retry-after": "7"}), httpx.Response(status)]
    busy.append(httpx.Response(status, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}))
    service = Service(busy)
    assert len(list(backend(service).run([(samples(1)[0], VARIANTS[:1])]))) == 1
    assert waits == [7.0, 2.0, 4.0]
    assert len(service.bodies) == 4


def test_a_service_that_stays_busy_ends_the_run(backend: Callable[..., RemoteBackend], waits: list[float]) -> None:
    service = Service(respond=lambda body: httpx.Response(429, text="no room"))
    with pytest.raises(UnavailableError, match="429: no room"):
        list(backend(service).run([(samples(1)[0], VARIANTS[:1])]))
    assert len(service.bodies) == len(waits) + 1 == 8


def test_an_error_ends_the_run_at_once_with_the_services_message(
    backend: Callable[..., RemoteBackend], waits: list[float]
) -> None:
    service = Service([httpx.Response(400, json={"error": {"message": "kv_retention must be above 0"}})])
    with pytest.raises(UnavailableError, match="kv_retention must be above 0"):
        list(backend(service).run([(samples(1)[0], VARIANTS)]))
    assert len(service.bodies) == 1
    assert waits == []


def test_a_service_that_tells_no_statistics_is_refused(backend: Callable[..., RemoteBackend]) -> None:
    service = Service([httpx.Response(200, json={"choices": [{"text": "so"}]})])
    with pytest.raises(UnavailableError, match="structkv gateway"):
        list(backend(service).run([(samples(1)[0], VARIANTS[:1])]))


def test_a_key_is_sent_and_not_told(backend: Callable[..., RemoteBackend]) -> None:
    sent: list[str | None] = []

    def service(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"data": [{"id": "served"}]})

    assert "key-of-anna" not in str(backend(service, api_key="key-of-anna").description)
    backend(service)
    assert sent == ["Bearer key-of-anna", None]


def test_nobody_there_is_said(backend: Callable[..., RemoteBackend]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(UnavailableError, match="http://service:8000"):
        backend(refuse)


def test_no_more_than_concurrency_are_asked_at_once(backend: Callable[..., RemoteBackend]) -> None:
    together = threading.Barrier(3, timeout=5)

    def respond(body: dict[str, object]) -> httpx.Response:
        together.wait()  # breaks unless three are under way
        return answer()

    service = Service(respond=respond)
    found = list(backend(service, concurrency=3).run([(sample, VARIANTS) for sample in samples(6)]))
    assert len({(sample.index, variant.label) for sample, variant, _ in found}) == 12
    assert service.most_at_once == 3


def test_what_got_done_beside_a_failure_is_not_lost(backend: Callable[..., RemoteBackend]) -> None:
    together = threading.Barrier(3, timeout=5)

    def respond(body: dict[str, object]) -> httpx.Response:
        together.wait()
        return httpx.Response(500, text="broken") if body["structkv"]["method"] == "full" else answer()  # type: ignore[index]

    asked = backend(Service(respond=respond), concurrency=3)
    jobs = [(samples(1)[0], [VARIANTS[0], *parse(["snapkv", "h2o"], [0.1], [])])]
    answers = asked.run(jobs)
    assert {next(answers)[1].label, next(answers)[1].label} == {"snapkv", "h2o"}
    with pytest.raises(UnavailableError, match="broken"):
        next(answers)
