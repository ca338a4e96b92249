"""Which web pages may ask the gateway from a browser (CORS): none unless the operator names their origins."""

import re
from typing import Annotated, Any

from fastapi import FastAPI
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


class CorsApp(FastAPI):
    """An app that pages of some origins may use. That goes around all middleware: a preflight has no key, and an error
    without these headers is hidden from the page.
    """

    def __init__(self, *, cors_origins: tuple[str, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self._origins = cors_origins

    def build_middleware_stack(self) -> ASGIApp:
        """Return what serves the app's connections."""
        app = super().build_middleware_stack()
        if not self._origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self._origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID_HEADER, "X-Trace-Id", "Retry-After"),
            max_age=_PREFLIGHT_SECONDS,
        )
