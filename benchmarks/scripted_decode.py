"""A decode worker that computes nothing, in a process of its own: it answers at once, so what is left is the gateway's.

It also says that it is healthy, and so can be named as the prefill worker, whom it never asks.
"""

import asyncio
from itertools import cycle, islice
from multiprocessing.connection import Connection

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.pb import decode_pb2, decode_pb2_grpc


class ScriptedDecode(decode_pb2_grpc.DecodeServicer):
    """Answers `max_tokens` of the same few tokens, over and over."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    async def Generate(  # type: ignore[override]  # noqa: N802
        self,
        request: decode_pb2.GenerateRequest,
        context: "grpc.aio.ServicerContext[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]",
    ) -> None:
        """Stream the answer, a token an event."""
        count = request.sampling.max_tokens
        stats = decode_pb2.SkeletonStats(kept_tokens_per_layer=[len(request.prompt_token_ids)])
        for index, token_id in enumerate(islice(cycle(self._token_ids), count)):
            event = decode_pb2.GenerateEvent(token_ids=[token_id])
            if index == 0:
                event.skeleton.CopyFrom(stats)
            if index == count - 1:
                event.finish_reason = decode_pb2.FINISH_REASON_LENGTH
            await context.write(event)


def serve(token_ids: list[int], pipe: Connection) -> None:
    """Serve until terminated; send the port through the pipe."""
    asyncio.run(_serve(token_ids, pipe))


async def _serve(token_ids: list[int], pipe: Connection) -> None:
    server = grpc.aio.server()
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    decode_pb2_grpc.add_DecodeServicer_to_server(ScriptedDecode(token_ids), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    pipe.send(port)
    await server.wait_for_termination()
