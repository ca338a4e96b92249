"""Whose a request is. Clients have equal shares, however many requests each sends."""

from hashlib import blake2b

from starlette.requests import Request

from services.gateway.http.crowding import network_of


def client_of(request: Request) -> int:
    """Return a number of 64 bits: of the request's API key or, where no key is asked for, of the network that it comes
    from. It is the same in every gateway that has the same keys in the same order.
    """
    number: int | None = getattr(request.state, "client", None)
    if number is not None:
        return number
    network = network_of(request.client.host) if request.client else ""
    return int.from_bytes(blake2b(network.encode(), digest_size=8).digest())
