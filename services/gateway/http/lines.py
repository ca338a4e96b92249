"""In which line a connection waits for its turns: its client's own, by its first request's head alone.

So who has a key waits for no requests but its own client's, and a health check for no one's with a key.
"""

import re
from collections.abc import Sequence

from services.gateway.http.api_keys import ApiKey
from services.gateway.http.auth import OPEN_PATHS, KnownKeys

_OPEN = re.compile(rb"(?:GET|HEAD) (?:%b)[ ?]" % b"|".join(sorted(path.encode() for path in OPEN_PATHS)))
_BEARER = re.compile(rb"\r\nauthorization:[ \t]*bearer[ \t]+([^\r]*)", re.IGNORECASE)


class Lines:
    """Finds the line of a request."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        """Take the keys there are; without any, a client is a network."""
        self._keys = KnownKeys(keys)

    def of(self, network: str, head: bytes) -> str:
        """Return the line of a request from a network, by its request line and headers."""
        if _OPEN.match(head):
            return f"open, {network}"
        bearer = _BEARER.search(head)
        state = None if bearer is None else self._keys.find(bearer[1].strip().decode("latin-1"))
        return network if state is None else f"client {state['client']}"
