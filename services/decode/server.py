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
from services.decode.answer import Answer
from services.decode.engine import DecodeEngine, Sequence
from services.decode.grammar import GrammarCompiler
from services.decode.group import Finish, Group, Token
from services.decode.metrics import DecodeMetrics
from services.decode.record import RequestRecord
from services.decode.sampling import Sampling
from services.decode.scheduler import DecodeScheduler
from services.decode.skeleton_loader import Order, SkeletonLoader

_FINISH = {
    None: decode_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: decode_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: decode_pb2.FINISH_REASON_LENGTH,
    Finish.GRAMMAR: decode_pb2.FINISH_REASON_GRAMMAR,
}

Context = grpc.aio.ServicerContext[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]


class DecodeServer(decode_pb2_grpc.DecodeServicer):
    """Answers Generate calls of one model."""

    def __init__(
        self,
        engine: DecodeEngine,
        scheduler: DecodeScheduler,
        loader: SkeletonLoader,
        grammars: GrammarCompiler,
        codecs: Collection[str] = CODECS,
        metrics: DecodeMetrics | None = None,
    ) -> None:
        """Take what a request passes through, the codecs in which skeletons are taken, and what counts requests."""
        self._engine = engine
        self._scheduler = scheduler
        self._loader = loader
        self._grammars = grammars
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
            selection, sampling = Selection.from_pb(request.selection), Sampling.from_pb(request.sampling)
            replays = _unfinished(request)
            if not replays:
                return
            engine.check(token_ids, selection, sampling, replays.values())
            spec = SkeletonSpec.of(engine.model.spec, token_ids, selection)
            self._check_codec(spec.codec.name)
            tokens = engine.tokens_to_reserve(len(token_ids), selection, sampling, [*map(len, replays.values())])
            async with (
                self._grammars.matchers(
                    sampling.grammar, sampling.max_tokens, [*replays.values()], request.client
                ) as matchers,
                self._scheduler.reserve(tokens, len(token_ids), request.priority, request.client) as group,
            ):
                waited, remaining = record.admitted(), context.time_remaining()
                deadline = None if remaining is None else time.monotonic() + remaining
                async with self._scheduler.doubting():
                    with tracing.current(tracing.start_span("decode.load_skeleton")):
                        skeleton = await self._loader.load(Order(request, spec, group.tables[0], deadline))
                        skeleton.stats.queue_seconds += waited
                        record.loaded(skeleton.stats, spec.codec.name)
                    tables = self._scheduler.spread(group)
                penalised = frozenset(token_ids if sampling.repetition_penalty != 1 else ())
                answers = [
                    Answer(sampling, penalised, number, matcher)
                    for number, matcher in zip(replays, matchers, strict=True)
                ]
                position, state = selection.next_position(len(token_ids)), skeleton.hidden_state
                sequences = [
                    Sequence(position, kv, answer, state, replay=replay)
                    for kv, answer, replay in zip(tables, answers, replays.values(), strict=True)
                ]
                await self._stream(group, sequences, skeleton.stats, context, record)

    def _check_codec(self, name: str) -> None:
        if name not in self._codecs:
            raise InvalidRequestError(
                f"codec {name} is refused: with it the model did not pass its needle probe at this worker's start",
                param="structkv.codec",
            )

    async def _stream(
        self,
        group: Group,
        sequences: list[Sequence],
        stats: decode_pb2.SkeletonStats,
        context: Context,
        record: RequestRecord,
    ) -> None:
        skeleton: decode_pb2.SkeletonStats | None = stats
        with record.decoding(len(sequences)):
            async with aclosing(self._scheduler.generate(group, sequences)) as tokens:
                async for token in tokens:
                    record.token(token.answer, is_last=token.finish is not None)
                    await context.write(_event(token, skeleton))
                    skeleton = None


def _unfinished(request: decode_pb2.GenerateRequest) -> dict[int, list[int]]:
    """Return the answers that are to go on, by number, each with its tokens so far."""
    answers = request.answers or [decode_pb2.AnswerSoFar()]
    return {number: list(answer.token_ids) for number, answer in enumerate(answers) if not answer.finished}


def _event(token: Token, skeleton: decode_pb2.SkeletonStats | None) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(
        token_ids=[token.token_id],
        finish_reason=_FINISH[token.finish],
        skeleton=skeleton,
        answer=token.answer,
        logprobs=None if token.logprobs is None else [decode_pb2.TokenLogprobs(**token.logprobs._asdict())],
    )
