"""Which web pages may ask the gateway from a browser (CORS): none unless the operator names their origins."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from services.gateway.http.context import REQUEST_ID_HEADER

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*?#@]+")
_PREFLIGHT_SECONDS = 600


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(",") if entry.strip())


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin, such as https://chat.example.org, without a path; nor is it *")
    return origins


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_origins)]
"""Origins separated by commas."""


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Return the app as pages of these origins may use it; the app itself if there are none.

    It goes around everything else: a preflight has no key, and an error without these headers is hidden from the page.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=(REQUEST_ID_HEADER, "X-Trace-Id", "Retry-After"),
        max_age=_PREFLIGHT_SECONDS,
    )
