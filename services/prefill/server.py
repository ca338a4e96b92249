"""The Prefill service: from messages to the scheduler and back, no policy."""

from contextlib import aclosing

import grpc

from common.errors import SkeletonError
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.rpc import error_boundary
from common.skeleton import wire
from common.skeleton.codecs import Codec
from common.skeleton.selection import Selection
from services.prefill.engine import PrefillEngine
from services.prefill.scheduler import PrefillScheduler

Context = grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillEvent]


class PrefillServer(prefill_pb2_grpc.PrefillServicer):
    """Answers Prefill calls of one model."""

    def __init__(self, engine: PrefillEngine, scheduler: PrefillScheduler) -> None:
        self._engine = engine
        self._scheduler = scheduler

    # A coroutine that writes, not a generator: a cancelled call then unwinds at once.
    async def Prefill(  # type: ignore[override]  # noqa: N802
        self, request: prefill_pb2.PrefillRequest, context: Context
    ) -> None:
        """Stream the skeleton of one prompt."""
        async with error_boundary(context, request.request_id):
            spec = self._engine.model.spec
            if request.model_fingerprint != spec.fingerprint:
                raise SkeletonError(
                    f"this worker's model is {spec.fingerprint}, the request is for {request.model_fingerprint}"
                )
            token_ids = list(request.prompt_token_ids)
            selection = Selection.from_pb(request.selection)
            self._engine.check(token_ids)
            codec = Codec.of(spec, len(token_ids), selection)
            await context.write(prefill_pb2.PrefillEvent(header=wire.header(spec, len(token_ids), codec)))
            async with aclosing(self._scheduler.stream(token_ids, selection, request.priority)) as events:
                async for event in events:
                    await context.write(event)
