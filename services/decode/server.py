"""The Decode service: one request's way from its prompt to its last token."""

import time
from collections.abc import Collection
from contextlib import aclosing

import grpc

from common import tracing
from common.errors import InvalidRequestError
from common.pb import decode_pb2, decode_pb2_grpc
from common.rpc import error_boundary
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec
from services.decode.engine import DecodeEngine, Sequence
from services.decode.metrics import DecodeMetrics
from services.decode.record import RequestRecord
from services.decode.sampling import Sampling
from services.decode.scheduler import DecodeScheduler, Finish
from services.decode.skeleton_loader import Order, SkeletonLoader

_FINISH = {
    None: decode_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: decode_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: decode_pb2.FINISH_REASON_LENGTH,
}

Context = grpc.aio.ServicerContext[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]


class DecodeServer(decode_pb2_grpc.DecodeServicer):
    """Answers Generate calls of one model."""

    def __init__(
        self,
        engine: DecodeEngine,
        scheduler: DecodeScheduler,
        loader: SkeletonLoader,
        codecs: Collection[str] = CODECS,
        metrics: DecodeMetrics | None = None,
    ) -> None:
        """Take what a request passes through, the codecs in which skeletons are taken, and what counts requests."""
        self._engine = engine
        self._scheduler = scheduler
        self._loader = loader
        self._codecs = codecs
        self._metrics = metrics or DecodeMetrics()

    # A coroutine that writes, not a generator: a cancelled call then unwinds at once.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: decode_pb2.GenerateRequest, context: Context
    ) -> None:
        """Reserve memory, have the skeleton loaded into it, decode."""
        async with error_boundary(context, request.request_id):
            engine, token_ids = self._engine, list(request.prompt_token_ids)
            record = RequestRecord(self._metrics, len(token_ids))
            replay = [token for answer in request.answers for token in answer.token_ids]
            selection, sampling = Selection.from_pb(request.selection), Sampling.from_pb(request.sampling)
            engine.check(token_ids, selection, sampling, replay)
            spec = SkeletonSpec.of(engine.model.spec, token_ids, selection)
            self._check_codec(spec.codec.name)
            tokens = engine.tokens_to_reserve(len(token_ids), selection, sampling, len(replay))
            async with self._scheduler.reserve(tokens, len(token_ids), request.priority) as kv:
                waited, remaining = record.admitted(), context.time_remaining()
                deadline = None if remaining is None else time.monotonic() + remaining
                with tracing.current(tracing.start_span("decode.load_skeleton")):
                    skeleton = await self._loader.load(Order(request, spec, kv, deadline))
                    skeleton.stats.queue_seconds += waited
                    record.loaded(skeleton.stats, spec.codec.name)
                sequence = Sequence(
                    selection.next_position(len(token_ids)),
                    kv,
                    sampling,
                    skeleton.hidden_state,
                    replay=replay,
                    priority=request.priority,
                )
                await self._stream(sequence, skeleton.stats, context, record)
            record.finished()

    def _check_codec(self, name: str) -> None:
        if name not in self._codecs:
            raise InvalidRequestError(
                f"codec {name} is refused: with it the model did not pass its needle probe at this worker's start",
                param="structkv.codec",
            )

    async def _stream(
        self, sequence: Sequence, stats: decode_pb2.SkeletonStats, context: Context, record: RequestRecord
    ) -> None:
        skeleton: decode_pb2.SkeletonStats | None = stats
        async with aclosing(self._scheduler.generate(sequence)) as tokens:
            async for token in tokens:
                record.token()
                await context.write(
                    decode_pb2.GenerateEvent(
                        token_ids=[token.token_id], finish_reason=_FINISH[token.finish], skeleton=skeleton
                    )
                )
                skeleton = None
