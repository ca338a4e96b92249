"""The Prefill service: from messages to the scheduler and back, no policy."""

from contextlib import aclosing

import grpc

from common.errors import SkeletonError
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.rpc import error_boundary
from common.skeleton import wire
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from common.transport.redis_store import RedisStore
from services.prefill.engine import PrefillEngine
from services.prefill.faults import Faults
from services.prefill.metrics import PrefillMetrics
from services.prefill.outlet import Outlet
from services.prefill.record import recorded, sending
from services.prefill.scheduler import PrefillScheduler

Context = grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillEvent]


class PrefillServer(prefill_pb2_grpc.PrefillServicer):
    """Answers Prefill calls of one model."""

    def __init__(
        self,
        engine: PrefillEngine,
        scheduler: PrefillScheduler,
        store: RedisStore | None = None,
        faults: Faults | None = None,
        metrics: PrefillMetrics | None = None,
    ) -> None:
        """Take what runs prompts, the store if the workers share one, what is to go wrong, for tests, and metrics."""
        self._engine = engine
        self._scheduler = scheduler
        self._store = store
        self._faults = faults
        self._metrics = metrics or PrefillMetrics()

    # A coroutine that writes, not a generator: a cancelled call then unwinds at once.
    async def Prefill(  # type: ignore[override]  # noqa: N802
        self, request: prefill_pb2.PrefillRequest, context: Context
    ) -> None:
        """Stream the skeleton of one prompt."""
        async with error_boundary(context, request.request_id, self._metrics.refused):
            model = self._engine.model.spec
            if request.model_fingerprint != model.fingerprint:
                raise SkeletonError(
                    f"this worker's model is {model.fingerprint}, the request is for {request.model_fingerprint}"
                )
            token_ids = list(request.prompt_token_ids)
            self._engine.check(token_ids)
            skeleton = SkeletonSpec.of(model, token_ids, Selection.from_pb(request.selection))
            await context.write(prefill_pb2.PrefillEvent(header=wire.header(skeleton)))
            store = self._store if request.store and self._store is not None and self._store.admits() else None
            # Left in reverse: a prompt that is cancelled stops before the store is tidied up.
            with recorded(len(token_ids), self._metrics) as phases:
                async with (
                    Outlet(skeleton, request.request_id, store, self._metrics.fell_back) as outlet,
                    aclosing(
                        self._scheduler.stream(token_ids, skeleton, request.priority, phases, request.client)
                    ) as stream,
                ):
                    async for event in stream if self._faults is None else self._faults.strike(stream):
                        with sending(phases):
                            async for message in outlet.pass_on(event):
                                await context.write(message)
