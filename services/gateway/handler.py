"""A request's whole way through the gateway: validate, tokenise, route, stream, respond."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from common.errors import ModelNotFoundError
from common.skeleton.selection import Selection
from services.gateway.answer import Answer
from services.gateway.body import read_body
from services.gateway.context import context_of
from services.gateway.deadline import timeout_seconds
from services.gateway.decode_client import DecodeClient
from services.gateway.detokenizer import Detokenizer
from services.gateway.drain import Drain
from services.gateway.planning import check_length, plan
from services.gateway.recorder import recorder
from services.gateway.schemas import BodyT, ChatRequest, CompletionRequest, parse
from services.gateway.shapes import ChatShape, CompletionShape, Envelope, Shape
from services.gateway.stop_strings import StopStrings
from services.gateway.streaming import EventStreamResponse, unless_disconnected
from services.gateway.text_model import Prompt, TextModel


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[BodyT]):
    """What makes one of OpenAI's endpoints: its body, how that becomes a prompt, and its answer's shape."""

    schema: type[BodyT]
    prompt: Callable[[TextModel, BodyT], Prompt]
    shape: Shape


COMPLETIONS = Endpoint(CompletionRequest, lambda model, body: model.completion_prompt(body.prompt), CompletionShape())
CHAT_COMPLETIONS = Endpoint(
    ChatRequest,
    lambda model, body: model.chat_prompt([message.model_dump(exclude_none=True) for message in body.messages]),
    ChatShape(),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may cost."""

    timeout_seconds: float
    max_body_bytes: int
    max_prompt_tokens: int


class RequestHandler:
    """Answers generation requests for one served model."""

    def __init__(
        self,
        model_name: str,
        model: TextModel,
        client: DecodeClient,
        defaults: Selection,
        limits: Limits,
        drain: Drain,
    ) -> None:
        self._model_name = model_name
        self._model = model
        self._client = client
        self._defaults = defaults
        self._limits = limits
        self._drain = drain

    async def handle(self, http: Request, endpoint: Endpoint[BodyT]) -> Response:
        """Answer one request, plain or as a stream.

        The status is decided with the first token, so every earlier failure is a proper HTTP error. A client that
        leaves ends the work at whichever await it is from routing on. Raises StructKVError and ClientDisconnect.
        """
        context = context_of(http)
        deadline = context.arrived + timeout_seconds(http.headers, self._limits.timeout_seconds)

        raw = await read_body(http, self._limits.max_body_bytes, deadline)
        self._drain.check()  # with the body read, or closing the connection would take the refusal with it
        body = parse(endpoint.schema, raw)
        self._check_model(body.model)
        recorder().lap("gateway.receive")
        prompt = await asyncio.to_thread(endpoint.prompt, self._model, body)  # a long prompt takes a second
        check_length(body, prompt, self._limits.max_prompt_tokens)
        request = plan(body, prompt, self._model, self._defaults, context.request_id)
        recorder().lap("gateway.tokenize")
        recorder().accepted(self._model_name, [request])
        call = await unless_disconnected(http.receive, self._client.open(request, deadline))
        ttft_seconds = time.monotonic() - context.arrived

        answer = Answer(call, self._detokenizer(prompt), StopStrings(body.stop), ttft_seconds, context.request_id)
        envelope = Envelope(
            endpoint.shape,
            self._model_name,
            request.selection.method,
            len(prompt.token_ids),
            return_stats=body.structkv.return_stats,
        )
        if body.stream:
            return EventStreamResponse(answer, envelope, include_usage=body.wants_usage_chunk, deadline=deadline)
        try:
            text = await unless_disconnected(http.receive, answer.text())
        finally:
            answer.close()
        return JSONResponse(envelope.whole(text, answer))

    def _check_model(self, name: str) -> None:
        if name != self._model_name:
            raise ModelNotFoundError(
                f"the model {name!r} does not exist; served is {self._model_name!r}", param="model"
            )

    def _detokenizer(self, prompt: Prompt) -> Detokenizer:
        return Detokenizer(self._model.tokenizer, prompt.token_ids if prompt.continues else ())
