"""Takes in a request's body: in time, within bounds, for this model, and not while the gateway drains."""

from dataclasses import dataclass

from fastapi import Request

from common.errors import InvalidRequestError, ModelNotFoundError
from services.gateway.http.body import read_body
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain
from services.gateway.requests.strict_body import BodyT, parse


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take, how large its body may be, and how urgent."""

    timeout_seconds: float
    max_body_bytes: int
    most_urgent_priority: int


class RequestReader:
    """Reads the bodies that are for one served model."""

    def __init__(self, model_name: str, limits: Limits, drain: Drain) -> None:
        self.model_name = model_name
        self._limits = limits
        self._drain = drain

    def deadline(self, http: Request) -> float:
        """Return when the request's time is over, on the monotonic clock; raise InvalidRequestError."""
        return context_of(http).arrived + timeout_seconds(http.headers, self._limits.timeout_seconds)

    async def read(self, http: Request, schema: type[BodyT]) -> BodyT:
        """Return the body; raise StructKVError for one that is too large, late or wrong, and ClientDisconnect."""
        raw = await read_body(http, self._limits.max_body_bytes, self.deadline(http))
        self._drain.check()  # with the body read, or closing the connection would take the refusal with it
        return parse(schema, raw)

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFoundError for a model that is not served; who names none means the one that is."""
        if name not in {None, self.model_name}:
            raise ModelNotFoundError(f"the model {name!r} does not exist; served is {self.model_name!r}", param="model")

    def priority(self, http: Request, asked: int | None) -> int:
        """Return how urgent a request is; who says nothing is as urgent as may be, but no more than 0.

        Raises InvalidRequestError for more than the operator leaves to this key, or to everybody.
        """
        own: int | None = getattr(http.state, "most_urgent_priority", None)
        most_urgent = self._limits.most_urgent_priority if own is None else own
        if asked is not None and asked < most_urgent:
            raise InvalidRequestError(
                f"priority {asked} is more urgent than you may ask for: {most_urgent} or higher", param="priority"
            )
        return max(0, most_urgent) if asked is None else asked
