"""Whether a service answers: for `structkv up`, and for a container's own health check."""

import http.client
import ssl
import urllib.error
import urllib.request
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.rpc import open_channel
from common.tls import Tls

_SHOWN_CHARACTERS = 300


async def problem_of_worker(target: str, tls: Tls | None, timeout_seconds: float) -> str | None:
    """Ask a worker for its health; return what is wrong, None if it serves."""
    async with open_channel(target, tls) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            return f"{target} gives no health: {error.code().name}, {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return None if status == "SERVING" else f"{target} says {status}"


def problem_of_url(url: str, timeout_seconds: float) -> str | None:
    """GET a URL; return what is wrong, None if it answers with 200.

    Nothing secret is sent, so whose certificate it is does not matter: it is for the names that clients use, not for
    this machine's own.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds, context=context) as response:  # noqa: S310  our own
            return None if response.status == http.HTTPStatus.OK else f"{url} answers {response.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}: {_beginning(error)}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no URL at all
        return f"{url} gives no answer: {getattr(error, 'reason', None) or error!r}"


def _beginning(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(_SHOWN_CHARACTERS).decode(errors="replace")
    except OSError as broken:
        return repr(broken)
