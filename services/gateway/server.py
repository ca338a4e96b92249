"""The HTTP surface: routes to calls, and what lives as long as the process."""

import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from common.errors import ModelNotFoundError, UnavailableError
from common.exposition import Exposition
from common.metrics import new_registry
from common.tls import Tls
from services.gateway.answers.answer_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
)
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.handler import CHAT_COMPLETIONS, COMPLETIONS, RequestHandler, TokenizationHandler
from services.gateway.http.auth import ApiKeyMiddleware
from services.gateway.http.body import BodyLimits, BodyReader
from services.gateway.http.context import RequestContextMiddleware
from services.gateway.http.cors import CorsApp
from services.gateway.http.drain import Drain, DrainMiddleware
from services.gateway.http.errors import DrainingError, error_body, install_handlers
from services.gateway.http.in_flight import InFlightMiddleware
from services.gateway.http.reader import RequestReader
from services.gateway.intake.intake import Intake
from services.gateway.intake.process import ForkServerProcess
from services.gateway.intake.work import Rules
from services.gateway.metrics import GatewayMetrics
from services.gateway.openapi import FAILURE, generation, publish, tokenization
from services.gateway.recording import RecordingMiddleware
from services.gateway.requests.schemas import ChatRequest, CompletionRequest
from services.gateway.service_schemas import Model, ModelList, NotReady, Status, Tokens, TokensText, Version
from services.gateway.settings import GatewaySettings
from services.gateway.text_model import TextModel, load_text_model
from services.gateway.tokenization import DetokenizeRequest, TokenizeRequest
from services.gateway.workers.decode_client import DecodeClient
from services.gateway.workers.routing import WorkerPool

logger = logging.getLogger(__name__)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Build the gateway's ASGI app; its lifespan opens the channels. Raises ModelLoadError.

    Its `state.drain` is where the process says that it is about to end.
    """
    name = settings.model_name
    drain = Drain(settings.shutdown_grace_seconds, settings.shutdown_delay_seconds)
    model = load_text_model(settings.model).with_tool_format(settings.tool_call_parser)
    _log_tool_format(model)
    tls = settings.tls
    decode = _pool("decode", settings.decode_workers, settings, tls)
    prefill = _pool("prefill", settings.prefill_workers, settings, tls)
    limits = BodyLimits(settings.max_body_bytes, settings.max_reading_bytes, settings.body_timeout_seconds)
    client = DecodeClient(decode, prefill, worker_wait_seconds=settings.worker_wait_seconds)
    metrics = GatewayMetrics(new_registry("gateway", name, settings.certificates))
    metrics.watch(decode, prefill)
    fork_server = ForkServerProcess(model, settings.log_level)
    rules = Rules(name, settings.selection, settings.max_prompt_tokens)
    intake = Intake(
        model, rules, fork_server, metrics, processes=settings.intake_processes, max_bytes=settings.max_body_bytes
    )
    reader = RequestReader(
        settings.request_timeout_seconds,
        BodyReader(limits),
        drain,
        most_urgent_priority=settings.most_urgent_priority,
    )
    handler = RequestHandler(name, reader, intake, model, client, heartbeat_seconds=settings.stream_heartbeat_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with decode, prefill, intake:
            yield

    app = CorsApp(
        cors_origins=settings.cors_origins,
        title="structkv",
        lifespan=lifespan,
        openapi_url=None,  # published below
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Its own spans would have the URL and exceptions' messages, which are the client's words.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.drain = drain
    _add_middleware(app, settings, drain, metrics)
    install_handlers(app)
    _add_generation_routes(app, handler)
    _add_tokenization_routes(app, TokenizationHandler(reader, intake))
    _add_model_routes(app, _model_object(name, model.context_tokens))
    _add_health_routes(app, drain, decode, prefill)
    _add_metrics_route(app, metrics.registry)
    publish(app, name)
    _answer_heads(app)
    return app


def _log_tool_format(model: TextModel) -> None:
    """Say once how calls of tools are written, and whether by the model's own template or in words of ours."""
    described_by = "chat template" if model.template_knows_tools else "system message"
    logger.info("tool calls", extra={"format": model.tool_format.name, "described_by": described_by})


def _add_middleware(app: FastAPI, settings: GatewaySettings, drain: Drain, metrics: GatewayMetrics) -> None:
    """Wrap the app from the inside out: a request gets its id first, is recorded, and counts only with a good key."""
    app.add_middleware(InFlightMiddleware, max_requests=settings.max_requests)
    if settings.all_api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.all_api_keys)
    app.add_middleware(RecordingMiddleware, metrics=metrics)
    app.add_middleware(RequestContextMiddleware)
    app.add_middleware(DrainMiddleware, drain=drain)


def _pool(kind: str, addresses: tuple[str, ...], settings: GatewaySettings, tls: Tls | None) -> WorkerPool:
    return WorkerPool(
        kind,
        addresses,
        interval_seconds=settings.health_interval_seconds,
        timeout_seconds=settings.health_timeout_seconds,
        tls=tls,
        discovery_interval_seconds=settings.discovery_interval_seconds,
    )


def _add_generation_routes(app: FastAPI, handler: RequestHandler) -> None:
    @app.post("/v1/completions", **generation(CompletionRequest, Completion, CompletionChunk))
    async def completions(http: Request) -> Response:
        return await handler.handle(http, COMPLETIONS)

    @app.post("/v1/chat/completions", **generation(ChatRequest, ChatCompletion, ChatCompletionChunk))
    async def chat_completions(http: Request) -> Response:
        return await handler.handle(http, CHAT_COMPLETIONS)


def _add_tokenization_routes(app: FastAPI, handler: TokenizationHandler) -> None:
    @app.post("/tokenize", **tokenization(TokenizeRequest, Tokens))
    async def tokenize(http: Request) -> Response:
        return await handler.handle(http, "tokenize")

    @app.post("/detokenize", **tokenization(DetokenizeRequest, TokensText))
    async def detokenize(http: Request) -> Response:
        return await handler.handle(http, "detokenize")


def _model_object(name: str, context_tokens: int) -> JsonObject:
    """Return a served model as /v1/models shows it, with the context length that other servers give too."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "structkv",
        "max_model_len": context_tokens,
    }


def _add_model_routes(app: FastAPI, served: JsonObject) -> None:
    @app.get("/v1/models", response_model=ModelList)
    async def models() -> JsonObject:
        return {"object": "list", "data": [served]}

    @app.get("/version", response_model=Version)
    async def version() -> JsonObject:
        return {"version": importlib.metadata.version("structkv")}

    @app.get("/v1/models/{name:path}", response_model=Model, responses=FAILURE)
    async def model(name: str) -> JsonObject:
        if name != served["id"]:
            raise ModelNotFoundError(f"the model {name!r} does not exist; served is {served['id']!r}", param="model")
        return served


def _add_metrics_route(app: FastAPI, registry: CollectorRegistry) -> None:
    exposition = Exposition(registry)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await exposition.text(), media_type=CONTENT_TYPE_LATEST)


def _add_health_routes(app: FastAPI, drain: Drain, *pools: WorkerPool) -> None:
    @app.get("/health", response_model=Status)
    async def health() -> JsonObject:
        return {"status": "ok"}

    @app.get("/ready", responses={200: {"model": Status}, 503: {"model": NotReady}})
    async def ready(workers: str = "true") -> Response:
        """Tell whether a request would be answered now; with `workers=false`, whether this gateway would take it."""
        missing = [pool.kind for pool in pools if workers != "false" and not pool.any_healthy]
        if drain.draining:
            return _not_ready(DrainingError("this gateway is draining"), "draining", missing)
        if missing:
            error = UnavailableError(f"no {' and no '.join(missing)} worker is serving")
            return _not_ready(error, "unavailable", missing)
        return JSONResponse({"status": "ready"})


def _answer_heads(app: FastAPI) -> None:
    """Take HEAD wherever GET is. The server leaves the body out; the published document names each path once."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _not_ready(error: UnavailableError, status: str, missing: list[str]) -> Response:
    return JSONResponse({**error_body(error), "status": status, "missing": missing}, 503)
