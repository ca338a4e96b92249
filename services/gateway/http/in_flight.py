"""Bounds how many requests are worked on at the same time."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import OverloadedError
from services.gateway.http.auth import OPEN_PATHS
from services.gateway.http.context import request_id_of
from services.gateway.http.errors import refuse


class Places:
    """As many as there may be requests in work."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self.num_taken = 0

    def check(self) -> None:
        """Raise OverloadedError if none is free."""
        if self.num_taken >= self._num_places:
            raise OverloadedError(f"{self._num_places} requests are being answered (max_requests)")


class Place:
    """A request's own. It is taken when the body is there, so whoever is slow to send one keeps nobody out.

    Attributes:
        is_taken: whether the request is worked on.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self.is_taken = False

    def take(self) -> None:
        """Take it; raise OverloadedError if all are taken."""
        self._places.check()
        self._places.num_taken += 1
        self.is_taken = True

    def leave(self) -> None:
        """Free it, if it was taken."""
        self._places.num_taken -= self.is_taken


def place_of(request: Request) -> Place:
    """Return the request's place."""
    place = request.state.place
    assert isinstance(place, Place)
    return place


class InFlightMiddleware:
    """Answers 429 beyond the bound: here, before a body is read, and wherever a place is taken."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._places = Places(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            self._places.check()
        except OverloadedError as error:
            await refuse(error, request_id_of(Request(scope)))(scope, receive, send)
            return
        place = scope["state"]["place"] = Place(self._places)
        try:
            await self._app(scope, receive, send)
        finally:
            place.leave()
