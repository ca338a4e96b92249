"""A request's whole way through the gateway: validate, tokenise, route, stream, respond."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from common.skeleton.selection import Selection
from services.gateway.answers.answer import Answer
from services.gateway.answers.choices import ChoiceFactory
from services.gateway.answers.envelope import Envelope
from services.gateway.answers.shapes import ChatShape, CompletionShape, Shape
from services.gateway.answers.streaming import EventStreamResponse, unless_disconnected
from services.gateway.http.context import context_of
from services.gateway.http.reader import RequestReader
from services.gateway.recorder import recorder
from services.gateway.requests.planning import check_length, plan_all
from services.gateway.requests.schemas import ChatRequest, CompletionRequest, GenerationRequest
from services.gateway.text_model import Prompt, TextModel
from services.gateway.tools.conversation import conversation
from services.gateway.tools.request import grammar_of
from services.gateway.workers.decode_calls import DecodeCalls
from services.gateway.workers.decode_client import DecodeClient

GenerationT = TypeVar("GenerationT", bound=GenerationRequest)


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[GenerationT]):
    """What makes one of OpenAI's endpoints: its body, how that becomes prompts, and its answer's shape."""

    schema: type[GenerationT]
    prompts: Callable[[TextModel, GenerationT], list[Prompt]]
    shape: Shape


COMPLETIONS = Endpoint(
    CompletionRequest,
    lambda model, body: [model.completion_prompt(prompt) for prompt in body.prompt],
    CompletionShape(),
)
CHAT_COMPLETIONS = Endpoint(
    ChatRequest,
    lambda model, body: [model.chat_prompt(*conversation(body.messages, body.offered_tools, model))],
    ChatShape(),
)


class RequestHandler:
    """Answers generation requests for one served model."""

    def __init__(
        self,
        reader: RequestReader,
        model: TextModel,
        client: DecodeClient,
        defaults: Selection,
        max_prompt_tokens: int,
    ) -> None:
        self._reader = reader
        self._model = model
        self._client = client
        self._defaults = defaults
        self._max_prompt_tokens = max_prompt_tokens
        self._choices = ChoiceFactory(model)

    async def handle(self, http: Request, endpoint: Endpoint[GenerationT]) -> Response:
        """Answer one request, plain or as a stream.

        The status is decided with the first token of each prompt, so every earlier failure is a proper HTTP error.
        A client that leaves ends the work at whichever await it is from routing on. Raises StructKVError and
        ClientDisconnect.
        """
        context, deadline = context_of(http), self._reader.deadline(http)
        body = await self._reader.read(http, endpoint.schema)
        self._reader.check_model(body.model)
        priority = self._reader.priority(http, body.priority if "priority" in body.model_fields_set else None)
        recorder().lap("gateway.receive")
        grammar = await asyncio.to_thread(grammar_of, body, self._model)
        prompts = await asyncio.to_thread(endpoint.prompts, self._model, body)  # a long prompt takes a second
        for prompt in prompts:
            check_length(body, prompt, self._max_prompt_tokens)
        requests = plan_all(body, prompts, self._model, self._defaults, context.request_id, grammar)
        for request in requests:
            request.priority = priority
        choices = self._choices.make(body, prompts)
        recorder().lap("gateway.tokenize")
        recorder().accepted(self._reader.model_name, requests)
        calls = await unless_disconnected(http.receive, DecodeCalls.open(self._client, requests, deadline))

        answer = Answer(calls, choices, time.monotonic() - context.arrived, context.request_id)
        method, return_stats = requests[0].selection.method, body.structkv.return_stats
        envelope = Envelope(endpoint.shape, self._reader.model_name, method, return_stats)
        if body.stream:
            return EventStreamResponse(answer, envelope, body.stream_options, deadline)
        try:
            wholes = await unless_disconnected(http.receive, answer.wholes())
        finally:
            answer.close()
        return JSONResponse(envelope.whole(answer, wholes))
