"""Takes in a request's body: in time, within bounds, and not while the gateway drains."""

from dataclasses import dataclass

from fastapi import Request

from services.gateway.http.body import read_body
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take, and how large its body may be."""

    timeout_seconds: float
    max_body_bytes: int


class RequestReader:
    """Reads requests' bodies."""

    def __init__(self, limits: Limits, drain: Drain) -> None:
        self._limits = limits
        self._drain = drain

    def deadline(self, http: Request) -> float:
        """Return when the request's time is over, on the monotonic clock; raise InvalidRequestError."""
        return context_of(http).arrived + timeout_seconds(http.headers, self._limits.timeout_seconds)

    async def read(self, http: Request) -> bytes:
        """Return the body; raise StructKVError for one that is too large or late, and ClientDisconnect."""
        raw = await read_body(http, self._limits.max_body_bytes, self.deadline(http))
        self._drain.check()  # with the body read, or closing the connection would take the refusal with it
        return raw
