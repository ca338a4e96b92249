"""Gives each request its recorder, its span and its line in the log."""

import asyncio
import logging
import time

from opentelemetry.trace import Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import tracing
from services.gateway.http.auth import OPEN_PATHS
from services.gateway.http.context import context_of
from services.gateway.http.errors import DrainingError
from services.gateway.metrics import GatewayMetrics
from services.gateway.recorder import CURRENT, RequestRecorder

TRACE_ID_HEADER = "X-Trace-Id"
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})

logger = logging.getLogger(__name__)


class RecordingMiddleware:
    """Records every request but those of monitors. It goes right inside what gives a request its context."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        span = _span(scope, context_of(Request(scope)).arrived)
        with self._metrics.in_flight.track_inprogress(), tracing.current(span):
            await self._record(span, scope, receive, send)

    async def _record(self, span: Span, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, status = context_of(Request(scope)).arrived, 0
        recorder = RequestRecorder(self._metrics, span, arrived, _OPERATIONS.get(scope["path"], ""))

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (trace_id := tracing.trace_id_of(span)) is not None:
                    MutableHeaders(scope=message)[TRACE_ID_HEADER] = trace_id
            await send(message)

        token = CURRENT.set(recorder)
        try:
            await self._app(scope, receive, send_with_trace)
        except asyncio.CancelledError:
            recorder.failed(DrainingError("this gateway stops"))
            raise
        except Exception as error:
            logger.error("request failed", exc_info=error)
            recorder.failed(error)
            status = 500
            raise
        finally:
            CURRENT.reset(token)
            # A path that is no route's is the client's own words, and is left out.
            method, route = _method(scope), getattr(scope.get("route"), "path", "")
            recorder.close(method, route, status)
            fields = {
                "method": method,
                "route": route,
                "status": status,
                "seconds": round(time.monotonic() - arrived, 4),
            }
            logger.info("request", extra=fields)


def _span(scope: Scope, arrived: float) -> Span:
    method, caller = _method(scope), tracing.context_from(Headers(scope=scope))
    attributes = {"http.request.method": method}
    return tracing.start_span(method, parent=caller, kind=SpanKind.SERVER, attributes=attributes, started=arrived)


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in _METHODS else "_OTHER"
