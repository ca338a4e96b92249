"""gRPC servers and channels as every service uses them: limits, keepalive, health, errors."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry import trace

from common.errors import StructKVError, trailing_metadata
from common.logging import logged_as
from common.network import address
from common.rpc_tracing import TracingInterceptor
from common.tls import Tls
from common.tracing import mark_failed

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Upper bound for one message: a prompt's token ids, or one chunk of a layer."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # No call of ours carries metadata to speak of: gRPC's own bounds, lest a newer version widen them.
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
]
_SERVER_OPTIONS: list[tuple[str, int | str]] = [
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    # A peer that does not get through TLS in this time goes; gRPC would hold it for two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
]
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    # A restarted worker is back for everyone within this time, or two that restart in turn would both seem away.
    ("grpc.max_reconnect_backoff_ms", 500),
]

_WATCH_SECONDS = 1.0
_LAST_SECONDS = 1.0

logger = logging.getLogger(__name__)


def open_channel(target: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Open a channel to `host:port`, in plain text without `tls`.

    It connects on first use and again after the peer came back.
    """
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    name = [("grpc.ssl_target_name_override", tls.peer_name)] if tls.peer_name else []
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    return grpc.aio.secure_channel(target, credentials, options=[*_CHANNEL_OPTIONS, *name])


async def is_serving(channel: grpc.aio.Channel, timeout_seconds: float) -> bool:
    """Tell whether the peer answers its health check with SERVING in time."""
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def error_boundary(
    context: grpc.aio.ServicerContext[Any, Any], request_id: str, count: Callable[[str], None] = lambda _: None
) -> AsyncIterator[None]:
    """Turn what a handler raises into a gRPC status, and tell `count` the reason, a word.

    Only unforeseen errors are logged with a traceback. What is logged inside carries the request's id.
    """
    with logged_as(request_id):
        try:
            yield
        except StructKVError as error:
            message = type(error).__name__ if error.quotes_text else str(error)
            logger.info("request refused", extra={"code": error.code.name, "error": message})
            mark_failed(trace.get_current_span(), error)
            count(error.reason)
            await context.abort(error.code, str(error), trailing_metadata(error))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            await _report_unforeseen(context, error, count)


async def _report_unforeseen(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, count: Callable[[str], None]
) -> None:
    if context.done():  # writing to a caller who has left fails in a way that grpc has no public name for
        logger.info("caller left", extra={"error": type(error).__name__})
        return
    logger.exception("request failed")
    mark_failed(trace.get_current_span(), error)
    count(StructKVError.reason)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__} in the worker; see its log")


async def serve(
    register: Callable[[grpc.aio.Server], None],
    main_loop: Coroutine[None, None, None],
    *,
    host: str,
    port: int,
    grace_seconds: float,
    max_rpcs: int,
    tls: Tls | None,
    makes_progress: Callable[[], bool],
) -> None:
    """Serve until SIGTERM or SIGINT, then refuse new calls and let running ones end within the grace time.

    Calls beyond `max_rpcs` are refused with RESOURCE_EXHAUSTED. That includes health checks, so a worker that is
    full to this point is passed over. With `tls`, only peers whose certificates its authority signed are served.
    `main_loop` is the worker's scheduler and runs as long as the server. If it fails, so does the worker, with its
    error: without it every call would hang. While it makes no progress, because a device hangs, say, the health check
    fails and others get the requests.
    """
    server = grpc.aio.server(
        options=_SERVER_OPTIONS, maximum_concurrent_rpcs=max_rpcs, interceptors=[TracingInterceptor()]
    )
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    register(server)
    bound = bind(server, address(host, port), tls)
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    logger.info("serving", extra={"host": host, "port": bound, "tls": tls is not None})

    stopping = asyncio.create_task(_stop_signal())
    working = asyncio.create_task(main_loop)
    watching = asyncio.create_task(_watch_progress(servicer, makes_progress))
    await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    has_failed = working.done()
    if has_failed:
        grace_seconds = _LAST_SECONDS  # no call can go on; those that wait are told, and asked elsewhere
    logger.info("draining", extra={"grace_seconds": grace_seconds})
    await servicer.enter_graceful_shutdown()
    await server.stop(grace_seconds)
    stopping.cancel()
    working.cancel()
    if has_failed:
        working.result()


def bind(server: grpc.aio.Server, target: str, tls: Tls | None) -> int:
    """Have a server listen at `host:port`; return the port. With `tls` every peer has to show a certificate."""
    if tls is None:
        return server.add_insecure_port(target)
    credentials = grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)], root_certificates=tls.authority, require_client_auth=True
    )
    return server.add_secure_port(target, credentials)


async def _watch_progress(servicer: health.aio.HealthServicer, makes_progress: Callable[[], bool]) -> None:
    was_well = True
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        if (is_well := makes_progress()) != was_well:
            logger.log(logging.INFO if is_well else logging.ERROR, "progress" if is_well else "a step hangs")
            status = health_pb2.HealthCheckResponse
            await servicer.set("", status.SERVING if is_well else status.NOT_SERVING)
            was_well = is_well


async def _stop_signal() -> None:
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, arrived.set)
    await arrived.wait()
