"""How long a request may take: the gateway's setting, or less where the client says so."""

import re

from starlette.datastructures import Headers

from common.errors import InvalidRequestError

TIMEOUT_HEADER = "X-Request-Timeout"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def timeout_seconds(headers: Headers, limit_seconds: float) -> float:
    """Return the request's time in seconds, at most the limit; raise InvalidRequestError for a header that is none."""
    sent = headers.get(TIMEOUT_HEADER)
    if sent is None:
        return limit_seconds
    seconds = float(sent) if _NUMBER.fullmatch(sent) else 0.0
    if seconds <= 0:
        raise InvalidRequestError(
            f"{TIMEOUT_HEADER} must be a positive number of seconds, at most {limit_seconds:g} of which count",
            param=TIMEOUT_HEADER,
        )
    return min(seconds, limit_seconds)
