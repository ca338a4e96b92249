"""Takes in a request's body: in time, within bounds, and not while the gateway drains."""

from fastapi import Request

from services.gateway.http.body import BodyReader
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain
from services.gateway.http.in_flight import place_of


class RequestReader:
    """Reads requests' bodies."""

    def __init__(self, timeout_seconds: float, bodies: BodyReader, drain: Drain) -> None:
        """Take how long a request may take, and who reads bodies."""
        self._timeout_seconds = timeout_seconds
        self._bodies = bodies
        self._drain = drain

    def deadline(self, http: Request) -> float:
        """Return when the request's time is over, on the monotonic clock; raise InvalidRequestError."""
        return context_of(http).arrived + timeout_seconds(http.headers, self._timeout_seconds)

    async def read(self, http: Request) -> bytes:
        """Return the body; raise StructKVError for one that is too large or late, and ClientDisconnect.

        With the body there the request takes its place among those that are worked on.
        """
        raw = await self._bodies.read(http, self.deadline(http))
        self._drain.check()  # with the body read, or closing the connection would take the refusal with it
        place_of(http).take()
        return raw
