"""A request's whole way through the gateway: read, route, stream, respond."""

import time
from dataclasses import dataclass

from fastapi import Request, Response

from services.gateway.answers.answer import Answer
from services.gateway.answers.choices import ChoiceFactory
from services.gateway.answers.envelope import Envelope
from services.gateway.answers.shapes import ChatShape, CompletionShape, Shape
from services.gateway.answers.streaming import EventStreamResponse, unless_disconnected
from services.gateway.answers.whole import encoded
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
        self, model_name: str, reader: RequestReader, intake: Intake, model: TextModel, client: DecodeClient
    ) -> None:
        self._model_name = model_name
        self._reader = reader
        self._intake = intake
        self._client = client
        self._choices = ChoiceFactory(model)

    async def handle(self, http: Request, endpoint: Endpoint) -> Response:
        """Answer one request, plain or as a stream.

        The status is decided with the first token of each prompt, so every earlier failure is a proper HTTP error.
        A client that leaves ends the work at whichever await it is. Raises StructKVError and ClientDisconnect.
        """
        context, deadline = context_of(http), self._reader.deadline(http)
        accepted = await self._accept(http, endpoint, deadline)
        choices = self._choices.make(accepted)
        recorder().lap("gateway.tokenize")
        recorder().accepted(self._model_name, accepted.requests)
        calls = await unless_disconnected(http.receive, DecodeCalls.open(self._client, accepted.requests, deadline))

        answer = Answer(calls, choices, time.monotonic() - context.arrived, context.request_id)
        method = accepted.requests[0].selection.method
        envelope = Envelope(endpoint.shape, self._model_name, method, accepted.return_stats)
        if accepted.stream is not None:
            return EventStreamResponse(answer, envelope, accepted.stream, deadline)
        try:
            wholes = await unless_disconnected(http.receive, answer.wholes())
        finally:
            answer.close()
        return Response(await encoded(envelope.whole(answer, wholes)), media_type="application/json")

    async def _accept(self, http: Request, endpoint: Endpoint, deadline: float) -> AcceptedRequest:
        """Return what is left of the body, which is not kept."""
        body = await self._reader.read(http)
        recorder().lap("gateway.receive")
        work = self._intake.accept(endpoint.kind, body, context_of(http).request_id, deadline)
        return await unless_disconnected(http.receive, work)


class TokenizationHandler:
    """Answers /tokenize and /detokenize."""

    def __init__(self, reader: RequestReader, intake: Intake) -> None:
        self._reader = reader
        self._intake = intake

    async def handle(self, http: Request, kind: TokenizationKind) -> Response:
        """Answer one request; a client that leaves ends the work. Raises StructKVError and ClientDisconnect."""
        body, deadline = await self._reader.read(http), self._reader.deadline(http)
        work = self._intake.answer(kind, body, context_of(http).request_id, deadline)
        return Response(await unless_disconnected(http.receive, work), media_type="application/json")
