"""Bounds how many requests are worked on at the same time."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import OverloadedError
from common.fair_bound import FairBound
from services.gateway.http.auth import OPEN_PATHS
from services.gateway.http.client import client_of
from services.gateway.http.context import request_id_of
from services.gateway.http.errors import refuse


class Place:
    """A request's own among `max_requests`. It is taken when the body is there, so whoever is slow to send one keeps
    nobody out.

    Attributes:
        is_taken: whether the request is worked on.
    """

    def __init__(self, places: FairBound, client: int) -> None:
        self._places = places
        self._client = client
        self.is_taken = False

    def check(self) -> None:
        """Raise OverloadedError if there is none for this client."""
        if self._places.excess(1, self._client):
            raise OverloadedError(
                f"{self._places.total} requests are being answered, {self._places.held(self._client)} of them yours "
                "(max_requests)"
            )

    def take(self) -> None:
        """Take it; raise OverloadedError if there is none for this client."""
        self.check()
        self._places.take(1, self._client)
        self.is_taken = True

    def leave(self) -> None:
        """Free it, if it was taken."""
        if self.is_taken:
            self._places.give_back(1, self._client)


def place_of(request: Request) -> Place:
    """Return the request's place."""
    place = request.state.place
    assert isinstance(place, Place)
    return place


class InFlightMiddleware:
    """Answers 429 beyond the bound: here, before a body is read, and wherever a place is taken."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._places = FairBound(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        place = Place(self._places, client_of(request))
        try:
            place.check()
        except OverloadedError as error:
            await refuse(error, request_id_of(request))(scope, receive, send)
            return
        scope["state"]["place"] = place
        try:
            await self._app(scope, receive, send)
        finally:
            place.leave()
