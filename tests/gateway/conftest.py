"""A decode worker that plays a script, and the gateway's app in front of it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import httpx
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from llguidance import LLTokenizer

from common.errors import StructKVError
from common.model.source import resolve
from common.pb import decode_pb2, decode_pb2_grpc
from common.rpc import bind, error_boundary
from common.settings import DEFAULT_MODEL
from common.tls import Tls
from services.gateway.http.connections import Server, ServerConfig
from services.gateway.intake.process import ForkServerProcess, JobProcess
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings
from services.gateway.text_model import TextModel, load_text_model

RUNNING = decode_pb2.FINISH_REASON_UNSPECIFIED
STOP = decode_pb2.FINISH_REASON_STOP
LENGTH = decode_pb2.FINISH_REASON_LENGTH

SKELETON = decode_pb2.SkeletonStats(
    pivot_layer=12,
    kept_tokens_per_layer=[40, 41, 42],
    skeleton_bytes=1000,
    full_kv_bytes=9000,
    queue_seconds=0.25,
    prefill_seconds=1.5,
    transfer_seconds=0.125,
    transport="redis",
    cached_tokens=0,
)

Step = decode_pb2.GenerateEvent | grpc.StatusCode | StructKVError | asyncio.Event | float
"""An event to send, a status to abort with, an error as a worker raises it, something to wait for, or seconds."""


@dataclass
class ScriptedDecode(decode_pb2_grpc.DecodeServicer):
    """Plays the same script to every call, without the tokens that the call brings, and remembers what it saw.

    With `script_for`, each call has a script of its own.
    """

    script: list[Step] = field(default_factory=list)
    script_for: Callable[[decode_pb2.GenerateRequest], list[Step]] | None = None
    requests: list[decode_pb2.GenerateRequest] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    time_remaining: float | None = None

    async def Generate(self, request, context):
        self.requests.append(request)
        self.time_remaining = context.time_remaining()
        try:
            known = {place: len(answer.token_ids) for place, answer in enumerate(request.answers)}
            for step in self.script if self.script_for is None else self.script_for(request):
                if isinstance(step, decode_pb2.GenerateEvent) and known.get(step.answer):
                    known[step.answer] -= len(step.token_ids)
                else:
                    await self._play(step, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _play(self, step: Step, context) -> None:
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, "as scripted")
        elif isinstance(step, StructKVError):
            async with error_boundary(context, "scripted"):
                raise step
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        else:
            await context.write(step)

    @property
    def request(self) -> decode_pb2.GenerateRequest:
        """The only request."""
        (request,) = self.requests
        return request


def events(
    token_ids: Iterable[int], finish: int = LENGTH, answer: int = 0, top_logprobs: int | None = None
) -> list[Step]:
    """Return one event per token, the skeleton with the first, the reason with the last."""
    token_ids = list(token_ids)
    steps: list[Step] = []
    for index, token_id in enumerate(token_ids):
        event = decode_pb2.GenerateEvent(token_ids=[token_id], answer=answer)
        event.finish_reason = finish if index == len(token_ids) - 1 else RUNNING
        if index == 0:
            event.skeleton.CopyFrom(SKELETON)
        if top_logprobs is not None:
            event.logprobs.append(scored(token_id, top_logprobs))
        steps.append(event)
    return steps


def scored(token_id: int, top_logprobs: int) -> decode_pb2.TokenLogprobs:
    """Return made-up log probabilities, in which the chosen token comes second if there is a second."""
    candidates = [token_id + 1, token_id, *range(token_id + 2, token_id + top_logprobs)][:top_logprobs]
    logprobs = [-0.25 * (1 + place) for place in range(top_logprobs)]
    return decode_pb2.TokenLogprobs(logprob=-0.5, top_token_ids=candidates, top_logprobs=logprobs)


def as_asked(request: decode_pb2.GenerateRequest) -> list[Step]:
    """Return a short script with all that a request asks for: every answer, and log probabilities if wanted."""
    sampling = request.sampling
    top_logprobs = sampling.top_logprobs if sampling.HasField("top_logprobs") else None
    answers = range(len(request.answers))
    return [step for answer in answers for step in events([5, 6, 7], answer=answer, top_logprobs=top_logprobs)]


@asynccontextmanager
async def grpc_worker(
    servicer: ScriptedDecode | None = None, port: int = 0, host: str = "127.0.0.1", tls: Tls | None = None
) -> AsyncIterator[str]:
    """Serve health, and Decode if there is a servicer; yield the address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    if servicer is not None:
        decode_pb2_grpc.add_DecodeServicer_to_server(servicer, server)
    port = bind(server, f"{host}:{port}", tls)
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(None)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that nothing announces; fail if it does not come."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Gateway:
    """A running app with its scripted worker."""

    app: FastAPI
    decode: ScriptedDecode
    decode_address: str
    prefill_address: str
    http: httpx.AsyncClient

    async def complete(self, **body: object) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": DEFAULT_MODEL, "prompt": "Once"} | body)

    async def chat(self, **body: object) -> httpx.Response:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        return await self.http.post("/v1/chat/completions", json={"model": DEFAULT_MODEL, "messages": messages} | body)


StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture(scope="session")
def text_model() -> TextModel:
    return load_text_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def grammar_tokenizer() -> LLTokenizer:
    """Return the same model's tokenizer as llguidance has it, to judge grammars by."""
    return LLTokenizer((resolve(DEFAULT_MODEL, weights=False) / "tokenizer.json").read_text(), eos_token=[2])


class SharedForkServer(ForkServerProcess):
    """The same server for all tests, started when one needs it."""

    def start(self) -> None: ...

    async def open(self) -> JobProcess:
        super().start()
        return await super().open()

    def stop(self) -> None: ...


@pytest.fixture(scope="session")
def fork_server_of() -> Iterator[Callable[[TextModel, str], ForkServerProcess]]:
    """Return a function that gives a model's fork server."""
    servers: dict[TextModel, SharedForkServer] = {}

    def get(model: TextModel, log_level: str) -> ForkServerProcess:
        return servers.setdefault(model, SharedForkServer(model, log_level))

    yield get
    for server in servers.values():
        ForkServerProcess.stop(server)


@pytest.fixture
async def start_gateway(
    text_model: TextModel,
    fork_server_of: Callable[[TextModel, str], ForkServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StartGateway]:
    """Return a function that starts the app; settings override the scripted workers' addresses."""
    monkeypatch.setattr("services.gateway.server.load_text_model", lambda _: text_model)  # read once, not per test
    monkeypatch.setattr("services.gateway.server.ForkServerProcess", fork_server_of)
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> Gateway:
            decode = ScriptedDecode(events(text_model.tokenizer.encode(" upon a time").ids))
            decode_address = await stack.enter_async_context(grpc_worker(decode))
            prefill_address = await stack.enter_async_context(grpc_worker())
            defaults = {"decode_workers": decode_address, "prefill_workers": prefill_address, "worker_wait_seconds": 0}
            app = create_app(GatewaySettings(**(defaults | settings)))
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://gateway"))
            return Gateway(app, decode, decode_address, prefill_address, http)

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Gateway:
    return await start_gateway()


@asynccontextmanager
async def listening(app: FastAPI, **settings: object) -> AsyncIterator[str]:
    """Serve an app whose lifespan already runs over real sockets, as the gateway does; yield its base URL."""
    defaults: dict[str, object] = {"port": 0, "decode_workers": "a:1", "prefill_workers": "b:1"}
    config = ServerConfig(app, GatewaySettings(**(defaults | {"shutdown_grace_seconds": 1} | settings)), lifespan="off")
    server = Server(config)
    serving = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await until(started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"{'https' if config.is_ssl else 'http'}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
