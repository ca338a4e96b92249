"""Takes in a request's body: in time, within bounds, and not while the gateway drains."""

from fastapi import Request

from common.errors import InvalidRequestError
from services.gateway.http.body import BodyReader
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain
from services.gateway.http.in_flight import place_of


class RequestReader:
    """Reads requests' bodies."""

    def __init__(self, timeout_seconds: float, bodies: BodyReader, drain: Drain, *, most_urgent_priority: int) -> None:
        """Take how long a request may take, who reads bodies, and how urgent anybody's request may be."""
        self._timeout_seconds = timeout_seconds
        self._bodies = bodies
        self._drain = drain
        self._most_urgent_priority = most_urgent_priority

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

    def priority(self, http: Request, asked: int | None) -> int:
        """Return how urgent a request is; who says nothing is as urgent as may be, but no more than 0.

        Raises InvalidRequestError for more than the operator leaves to this key, or to everybody.
        """
        own: int | None = getattr(http.state, "most_urgent_priority", None)
        most_urgent = self._most_urgent_priority if own is None else own
        if asked is not None and asked < most_urgent:
            raise InvalidRequestError(
                f"priority {asked} is more urgent than you may ask for: {most_urgent} or higher", param="priority"
            )
        return max(0, most_urgent) if asked is None else asked
