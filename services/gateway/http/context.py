"""What a request has from its first byte on: an id, and the time it came."""

import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.logging import logged_as

REQUEST_ID_HEADER = "X-Request-Id"
_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """A request's id, the client's own where it sent one, and its arrival on the monotonic clock (seconds)."""

    request_id: str
    arrived: float


class RequestContextMiddleware:
    """Gives each request its context and echoes the id, whatever the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(_request_id(scope), time.monotonic())
        scope.setdefault("state", {})["context"] = context

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = context.request_id
            await send(message)

        with logged_as(context.request_id):
            await self._app(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return sent if _ACCEPTABLE_ID.fullmatch(sent) else uuid.uuid4().hex


def context_of(request: Request) -> RequestContext:
    """Return the request's context."""
    context = request.state.context
    assert isinstance(context, RequestContext)
    return context


def request_id_of(request: Request) -> str:
    """Return the request's id."""
    return context_of(request).request_id
