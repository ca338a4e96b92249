"""The one place where an error becomes an HTTP answer, in OpenAI's shape.

InvalidRequestError     400      InvalidApiKeyError        401, with WWW-Authenticate
├── ContextLengthError  400      BodyTimeoutError          408, with Connection: close
└── ModelNotFoundError  404      BodyTooLargeError         413
                                 UnsupportedMediaTypeError 415, with Accept-Encoding
                                 OverloadedError           429, with Retry-After
any other StructKVError 500      UnavailableError          503
                                 └── DrainingError         503, with Retry-After
                                 DeadlineError             504
"""

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from common.errors import (
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    NoWorkerError,
    OverloadedError,
    StructKVError,
    UnavailableError,
)
from services.gateway.http.context import REQUEST_ID_HEADER, request_id_of
from services.gateway.recorder import recorder

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; it is only ever seen in a log."""

logger = logging.getLogger(__name__)


class BodyTooLargeError(InvalidRequestError):
    """The request body has more bytes than the gateway reads."""

    reason = "too_large"


class BodyTimeoutError(InvalidRequestError):
    """The request body comes too slowly, or not at all."""

    reason = "too_slow"


class UnsupportedMediaTypeError(InvalidRequestError):
    """The request body is of a type, or packed in a way, that the gateway does not read."""

    reason = "media_type"


class InvalidApiKeyError(InvalidRequestError):
    """The request carries no key that the gateway knows."""

    reason = "unauthorized"


class DrainingError(UnavailableError):
    """This gateway is about to stop; another one, or the next one at this address, takes the request."""

    reason = "draining"
    retry_after_seconds = 1


@dataclass(frozen=True, slots=True)
class _Meaning:
    status: int
    kind: str
    code: str | None


_INVALID = "invalid_request_error"
_WORKERS_FAILED = "the workers that were asked have failed; ask again later"
_MEANINGS: dict[type[StructKVError], _Meaning] = {
    StructKVError: _Meaning(500, "server_error", "internal_error"),
    InvalidRequestError: _Meaning(400, _INVALID, None),
    ContextLengthError: _Meaning(400, _INVALID, "context_length_exceeded"),
    ModelNotFoundError: _Meaning(404, _INVALID, "model_not_found"),
    InvalidApiKeyError: _Meaning(401, _INVALID, "invalid_api_key"),
    BodyTimeoutError: _Meaning(408, _INVALID, "request_timeout"),
    UnsupportedMediaTypeError: _Meaning(415, _INVALID, "unsupported_media_type"),
    BodyTooLargeError: _Meaning(413, _INVALID, "request_too_large"),
    OverloadedError: _Meaning(429, "overloaded_error", "overloaded"),
    UnavailableError: _Meaning(503, "service_unavailable", "service_unavailable"),
    DeadlineError: _Meaning(504, "timeout_error", "deadline_exceeded"),
}

_HEADERS: dict[type[StructKVError], dict[str, str]] = {
    InvalidApiKeyError: {"WWW-Authenticate": "Bearer"},
    BodyTimeoutError: {"Connection": "close"},
    UnsupportedMediaTypeError: {"Accept-Encoding": "gzip, deflate"},
}


def _meaning(error: StructKVError) -> _Meaning:
    return next(_MEANINGS[kind] for kind in type(error).__mro__ if kind in _MEANINGS)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_body(error: Exception) -> dict[str, object]:
    """Return an error as OpenAI's clients read it. What was not raised on purpose tells nothing of itself."""
    if not isinstance(error, StructKVError):
        return _body("internal error; see the gateway's log", "server_error", None, "internal_error")
    meaning = _meaning(error)
    message = _WORKERS_FAILED if _names_insides(error) else str(error)
    code = getattr(error, "openai_code", meaning.code)
    return _body(message, meaning.kind, getattr(error, "param", None), code)


def _names_insides(error: StructKVError) -> bool:
    """Tell whether an error's words are of addresses and workers, which are for the log."""
    return isinstance(error, UnavailableError) and not isinstance(error, (NoWorkerError, DrainingError))


def answer_to(error: StructKVError) -> Response:
    """Return the whole answer that an error becomes."""
    return JSONResponse(error_body(error), _meaning(error).status, headers=_headers(error))


def refuse(error: StructKVError, request_id: str) -> Response:
    """Return the answer to a request that is refused, and record that it is: the code, not the message."""
    recorder().failed(error)
    meaning = _meaning(error)
    logger.log(
        logging.ERROR if meaning.status == 500 else logging.INFO,
        "request refused",
        extra={"request_id": request_id, "status": meaning.status, "code": meaning.code},
    )
    return answer_to(error)


def _headers(error: StructKVError) -> dict[str, str]:
    if error.retry_after_seconds is not None:
        return {"Retry-After": str(error.retry_after_seconds)}
    return next((headers for kind, headers in _HEADERS.items() if isinstance(error, kind)), {})


def install_handlers(app: FastAPI) -> None:
    """Make every error that leaves a route an answer in OpenAI's shape."""
    app.add_exception_handler(StructKVError, _on_structkv_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unforeseen)


async def _on_structkv_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StructKVError)
    return refuse(error, request_id_of(request))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    recorder().failed(InvalidRequestError("no such method or path"))
    message = f"{error.detail}: {request.method} {request.url.path}"
    return JSONResponse(_body(message, _INVALID, None, None), error.status_code, headers=error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001
    recorder().left()
    logger.info("client left", extra={"request_id": request_id_of(request)})
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_unforeseen(request: Request, error: Exception) -> Response:
    # This handler runs outside the middleware that would set the header, and that has logged the error.
    return JSONResponse(error_body(error), 500, headers={REQUEST_ID_HEADER: request_id_of(request)})
