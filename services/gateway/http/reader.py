"""Takes in a request's body: in time, within bounds, for this model, and not while the gateway drains."""

from dataclasses import dataclass

from fastapi import Request

from common.errors import ModelNotFoundError
from services.gateway.http.body import read_body
from services.gateway.http.context import context_of
from services.gateway.http.deadline import timeout_seconds
from services.gateway.http.drain import Drain
from services.gateway.requests.strict_body import BodyT, parse


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take, and how large its body may be."""

    timeout_seconds: float
    max_body_bytes: int


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
