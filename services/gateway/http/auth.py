"""Lets in whoever has an API key, before anything of a request but its headers is read."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.http.api_keys import ApiKey
from services.gateway.http.context import request_id_of
from services.gateway.http.errors import InvalidApiKeyError, refuse

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""What orchestrators and monitors ask without a key. Every other path, known or not, needs one."""


class KnownKeys:
    """The keys there are. Digests are kept and compared, never the keys.

    A key's client is its place among them, so workers learn nothing of the key.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._states = [
            (_digest(key.secret.get_secret_value()), {"client": client, "most_urgent_priority": key.priority})
            for client, key in enumerate(keys, 1)
        ]

    def find(self, token: str) -> dict[str, int | None] | None:
        """Return whose a key is and how urgent it may be; None for an unknown one."""
        # All are compared, so the time tells neither which key matched nor how much of one did.
        digest = _digest(token)
        matches = [state for known, state in self._states if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


class ApiKeyMiddleware:
    """Answers 401 to requests without a known key, and notes of a known one whose it is and how urgent it may be."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = KnownKeys(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if (state := self._keys.find(_bearer_token(scope))) is not None:
            scope.setdefault("state", {}).update(state)
            await self._app(scope, receive, send)
            return
        error = InvalidApiKeyError("the API key is missing or unknown; send it as 'Authorization: Bearer KEY'")
        await refuse(error, request_id_of(Request(scope)))(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _bearer_token(scope: Scope) -> str:
    scheme, _, token = Headers(scope=scope).get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
