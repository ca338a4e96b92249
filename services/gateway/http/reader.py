"""Takes in a request's body: in time, within bounds, for this model, and not while the gateway drains."""

from fastapi import Request

from common.errors import ModelNotFoundError
from services.gateway.http.body import BodyReader
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain
from services.gateway.http.in_flight import place_of
from services.gateway.requests.strict_body import BodyT, parse


class RequestReader:
    """Reads the bodies that are for one served model."""

    def __init__(self, model_name: str, timeout_seconds: float, bodies: BodyReader, drain: Drain) -> None:
        """Take the model's name, how long a request may take, and who reads bodies."""
        self.model_name = model_name
        self._timeout_seconds = timeout_seconds
        self._bodies = bodies
        self._drain = drain

    def deadline(self, http: Request) -> float:
        """Return when the request's time is over, on the monotonic clock; raise InvalidRequestError."""
        return context_of(http).arrived + timeout_seconds(http.headers, self._timeout_seconds)

    async def read(self, http: Request, schema: type[BodyT]) -> BodyT:
        """Return the body; raise StructKVError for one that is too large, late or wrong, and ClientDisconnect.

        With the body there the request takes its place among those that are worked on.
        """
        raw = await self._bodies.read(http, self.deadline(http))
        self._drain.check()  # with the body read, or closing the connection would take the refusal with it
        place_of(http).take()
        return parse(schema, raw)

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFoundError for a model that is not served; who names none means the one that is."""
        if name not in {None, self.model_name}:
            raise ModelNotFoundError(f"the model {name!r} does not exist; served is {self.model_name!r}", param="model")
