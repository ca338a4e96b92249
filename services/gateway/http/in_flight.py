"""Bounds how many requests are answered at the same time."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import OverloadedError
from services.gateway.http.auth import OPEN_PATHS
from services.gateway.http.context import request_id_of
from services.gateway.http.errors import refuse


class InFlightMiddleware:
    """Answers 429 to requests beyond the bound, before their bodies are read: each may hold `max_body_bytes`."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif self._num_running >= self._max_requests:
            error = OverloadedError(f"{self._max_requests} requests are being answered (max_requests)")
            await refuse(error, request_id_of(Request(scope)))(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._num_running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running -= 1
