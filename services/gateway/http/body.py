"""Reads a request's body within bounds: no more bytes than allowed, and not for ever."""

import asyncio

from fastapi import Request

from common.errors import DeadlineError
from services.gateway.http.errors import BodyTooLargeError


async def read_body(http: Request, max_bytes: int, deadline: float) -> bytes:
    """Return the body, up to `max_bytes` long and whole by `deadline` (monotonic).

    Raises BodyTooLargeError, before reading where the client says the length, DeadlineError, and starlette's
    ClientDisconnect.
    """
    declared = http.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_up_to(http, max_bytes)
    except TimeoutError:
        raise DeadlineError("the request's body did not arrive in time") from None


async def _read_up_to(http: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the request body is larger than {max_bytes} bytes")
