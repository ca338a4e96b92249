"""Neither what a client says nor its key reaches a log, at any level, however the request ends."""

import logging
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest

from common.errors import InvalidRequestError
from common.logging import JsonFormatter
from common.rpc import error_boundary
from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel
from tests.gateway.conftest import ScriptedDecode, StartGateway, events, grpc_worker, listening

WORDS = "heliotrope aardvark"
ANSWER = " vermilion pangolin"
KEY, WRONG_KEY = "sk-anna-3f9a8c1e5b7d2046", "sk-eve-77e1d0c4b3a29586"
BODY = {"model": DEFAULT_MODEL, "prompt": f"Tell of the {WORDS}", "stop": "heliotrope!"}
CHAT = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": f"Tell of the {WORDS}"}]}


class FailingDecode(ScriptedDecode):
    """Fails as a worker does that has a bug."""

    async def Generate(self, request, context):
        async with error_boundary(context, request.request_id):
            raise RuntimeError("no such kernel")


class Lines(logging.Handler):
    """What the gateway would write, from every logger but those of the test's own client."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter("gateway", exception_messages=False))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("httpx", "httpcore")):
            self.lines.append(self.format(record))

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def log() -> Iterator[Lines]:
    root, handler = logging.getLogger(), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)
    secrets = [*WORDS.split(), *ANSWER.split(), KEY, WRONG_KEY, KEY.removeprefix("sk-anna-")]
    assert handler.lines
    assert [line for line in handler.lines if any(secret in line for secret in secrets)] == []


@pytest.fixture
async def decode(text_model: TextModel) -> ScriptedDecode:
    return ScriptedDecode(events(text_model.tokenizer.encode(ANSWER).ids))


@pytest.fixture
async def http(start_gateway: StartGateway, decode: ScriptedDecode, log: Lines) -> AsyncIterator[httpx.AsyncClient]:
    async with grpc_worker(decode) as address:
        gateway = await start_gateway(
            api_keys=KEY, decode_workers=address, request_timeout_seconds=2, max_body_bytes=10_000
        )
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            listening(gateway.app) as url,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
        ):
            yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_answers(http: httpx.AsyncClient, log: Lines, stream: bool) -> None:
    for path, body in (("/v1/completions", BODY), ("/v1/chat/completions", CHAT)):
        response = await http.post(path, json=body | {"stream": stream})
        assert "olin" in response.text
    assert log.has("answer ended")


async def test_a_key_that_is_unknown(http: httpx.AsyncClient, log: Lines) -> None:
    response = await http.post("/v1/completions", json=BODY, headers={"Authorization": f"Bearer {WRONG_KEY}"})
    assert response.status_code == 401
    assert KEY not in response.text
    assert WRONG_KEY not in response.text
    assert log.has("invalid_api_key")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (f'{{"model": "{DEFAULT_MODEL}", "prompt": "{WORDS}'.encode(), 400),
        (f'{{"model": "{DEFAULT_MODEL}", "prompt": ["{WORDS}", 5]}}'.encode(), 400),
        (f'{{"model": "{DEFAULT_MODEL}", "prompt": "{WORDS}", "temperature": "{WORDS}"}}'.encode(), 400),
        (f'{{"model": "{WORDS}", "prompt": "{WORDS}"}}'.encode(), 404),
        (f'{{"model": "{DEFAULT_MODEL}", "prompt": "{WORDS * 1000}"}}'.encode(), 413),
    ],
)
async def test_bad_bodies(http: httpx.AsyncClient, log: Lines, content: bytes, status: int) -> None:
    assert (await http.post("/v1/completions", content=content)).status_code == status
    assert log.has("request refused")


async def test_words_in_the_url(http: httpx.AsyncClient, log: Lines) -> None:
    assert (await http.get(f"/v1/{WORDS}", params={"q": WORDS, "key": KEY})).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", [0, 1])
async def test_the_deadline(http: httpx.AsyncClient, decode: ScriptedDecode, stream: bool, at: int) -> None:
    decode.script.insert(at, 30.0)
    assert "deadline_exceeded" in (await http.post("/v1/completions", json=BODY | {"stream": stream})).text


@pytest.mark.parametrize(("at", "status"), [(0, 429), (1, 504)])
async def test_a_worker_that_refuses(http: httpx.AsyncClient, decode: ScriptedDecode, at: int, status: int) -> None:
    decode.script.insert(at, grpc.StatusCode.RESOURCE_EXHAUSTED)  # half an answer waits for room until its deadline
    assert (await http.post("/v1/completions", json=BODY)).status_code == status


async def test_a_worker_that_fails(start_gateway: StartGateway, log: Lines) -> None:
    async with grpc_worker(FailingDecode()) as address:
        gateway = await start_gateway(decode_workers=address)
        assert (await gateway.complete(prompt=WORDS)).status_code == 500
    assert log.has("request failed")


@pytest.mark.parametrize("error", [ValueError(WORDS), InvalidRequestError(WORDS)])
async def test_an_error_that_quotes_the_prompt(
    http: httpx.AsyncClient, log: Lines, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(TextModel, "completion_prompt", refuse)
    assert (await http.post("/v1/completions", json=BODY)).status_code in {400, 500}
    assert log.has("request failed") or log.has("request refused")


async def test_a_failing_detokeniser(http: httpx.AsyncClient, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, token_ids: list[int]) -> str:
        raise ValueError(ANSWER)

    monkeypatch.setattr("services.gateway.answers.detokenizer.Detokenizer.push", fail)
    response = await http.post("/v1/completions", json=BODY | {"stream": True})
    assert "internal_error" in response.text
    assert log.has("stream failed")
