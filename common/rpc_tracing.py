"""Each of our calls on a server is a span, in the caller's trace."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
from opentelemetry.trace import SpanKind

from common import tracing

_OURS = "/structkv."

Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[None]]


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Runs a call's handler in a span; health checks have none."""

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method's handler, in a span if the method is ours."""
        handler = await continuation(details)
        if handler is None or handler.unary_stream is None or not details.method.startswith(_OURS):
            return handler
        return grpc.unary_stream_rpc_method_handler(
            _traced(details, cast(Handler, handler.unary_stream)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _traced(details: grpc.HandlerCallDetails, handle: Handler) -> Any:
    method = details.method.removeprefix("/")
    caller = tracing.context_from({name: str(value) for name, value in details.invocation_metadata or ()})

    async def traced(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = tracing.start_span(method, parent=caller, kind=SpanKind.SERVER, attributes=attributes)
        with tracing.current(span):
            await handle(request, context)

    return traced
