"""A request's whole way through the gateway: read, route, stream, respond."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from fastapi import Request, Response

from services.gateway.answers.answer import Answer
from services.gateway.answers.choices import ChoiceFactory
from services.gateway.answers.envelope import Envelope
from services.gateway.answers.shapes import ChatShape, CompletionShape, Shape
from services.gateway.answers.streaming import (
    Begun,
    EventStreamResponse,
    StreamContext,
    close,
    unless_disconnected,
    until_status,
)
from services.gateway.answers.whole import encoded
from services.gateway.http.client import client_of
from services.gateway.http.context import context_of
from services.gateway.http.reader import RequestReader
from services.gateway.intake.accepted import AcceptedRequest
from services.gateway.intake.intake import Intake
from services.gateway.intake.work import GenerationKind, TokenizationKind
from services.gateway.recorder import recorder
from services.gateway.text_model import TextModel
from services.gateway.workers.decode_calls import DecodeCalls
from services.gateway.workers.decode_client import DecodeClient


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What makes one of OpenAI's endpoints: how its body is read, and its answer's shape."""

    kind: GenerationKind
    shape: Shape


COMPLETIONS = Endpoint("completion", CompletionShape())
CHAT_COMPLETIONS = Endpoint("chat", ChatShape())


class RequestHandler:
    """Answers generation requests for one served model."""

    def __init__(
        self,
        model_name: str,
        reader: RequestReader,
        intake: Intake,
        model: TextModel,
        client: DecodeClient,
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._model_name = model_name
        self._reader = reader
        self._intake = intake
        self._client = client
        self._heartbeat_seconds = heartbeat_seconds
        self._choices = ChoiceFactory(model)

    async def handle(self, http: Request, endpoint: Endpoint) -> Response:
        """Answer one request, plain or as a stream.

        The status is decided with the first token of each prompt, so every earlier failure is a proper HTTP error;
        but a stream that waits longer begins without one. A client that leaves ends the work at whichever await it is.
        Raises StructKVError and ClientDisconnect.
        """
        context, deadline, client = context_of(http), self._reader.deadline(http), client_of(http)
        body = await self._reader.read(http)
        recorder().lap("gateway.receive")
        streams = asyncio.get_running_loop().create_future()
        accepting = self._intake.accept(endpoint.kind, body, context.request_id, deadline, streams, client)
        del body  # it is not kept: what is left of it is what has been accepted
        opening = asyncio.ensure_future(self._begin(http, accepting, endpoint.shape, deadline))
        try:
            await unless_disconnected(http.receive, until_status(opening, streams, self._heartbeat_seconds))
            if not opening.done() or opening.result().stream is not None:
                return EventStreamResponse(
                    opening, StreamContext(context.request_id, deadline, self._heartbeat_seconds)
                )
            begun = opening.result()
            wholes = await unless_disconnected(http.receive, begun.answer.wholes())
        except BaseException:
            await close(opening)
            raise
        begun.answer.close()
        return Response(await encoded(begun.envelope.whole(begun.answer, wholes)), media_type="application/json")

    async def _begin(
        self, http: Request, accepting: Awaitable[AcceptedRequest], shape: Shape, deadline: float
    ) -> Begun:
        """Return the answer once each prompt has its first token."""
        context, accepted = context_of(http), await accepting
        priority, client = self._reader.priority(http, accepted.priority), client_of(http)
        for request in accepted.requests:
            request.priority, request.client = priority, client
        choices = self._choices.make(accepted)
        recorder().lap("gateway.tokenize")
        recorder().accepted(self._model_name, accepted.requests)
        calls = await DecodeCalls.open(self._client, accepted.requests, deadline)
        answer = Answer(calls, choices, time.monotonic() - context.arrived, context.request_id)
        envelope = Envelope(shape, self._model_name, accepted.requests[0].selection.method, accepted.return_stats)
        return Begun(answer, envelope, accepted.stream)


class TokenizationHandler:
    """Answers /tokenize and /detokenize."""

    def __init__(self, reader: RequestReader, intake: Intake) -> None:
        self._reader = reader
        self._intake = intake

    async def handle(self, http: Request, kind: TokenizationKind) -> Response:
        """Answer one request; a client that leaves ends the work. Raises StructKVError and ClientDisconnect."""
        body, deadline = await self._reader.read(http), self._reader.deadline(http)
        work = self._intake.answer(kind, body, context_of(http).request_id, deadline, client_of(http))
        return Response(await unless_disconnected(http.receive, work), media_type="application/json")
