"""The work itself, from bytes to tokens: the same in the gateway and in a process of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common.errors import ModelNotFoundError
from common.skeleton.selection import Selection
from services.gateway.intake.accepted import AcceptedRequest, accepted
from services.gateway.requests.planning import check_length, plan_all
from services.gateway.requests.schemas import ChatRequest, CompletionRequest, GenerationRequest
from services.gateway.requests.strict_body import parse
from services.gateway.text_model import Prompt, TextModel
from services.gateway.tokenization import DetokenizeRequest, TokenizeRequest, detokenized, tokenized
from services.gateway.tools.conversation import conversation
from services.gateway.tools.request import grammar_of, has_grammar

GenerationKind = Literal["completion", "chat"]
TokenizationKind = Literal["tokenize", "detokenize"]
Kind = GenerationKind | TokenizationKind
Body = CompletionRequest | ChatRequest | TokenizeRequest | DetokenizeRequest
Result = AcceptedRequest | bytes
"""A request for decode, or an answer's JSON."""

_SCHEMAS: dict[Kind, type[Body]] = {
    "completion": CompletionRequest,
    "chat": ChatRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What requests are held against, and what they get that they do not say; `max_prompt_tokens` of 0 is no limit."""

    model_name: str
    defaults: Selection
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """A request's bytes, and what is to become of them."""

    kind: Kind
    body: bytes
    request_id: str
    rules: Rules


def do(job: Job, model: TextModel, on_parsed: Callable[[bool], None]) -> Result:
    """Return what becomes of a body; tell before whether it asks for a stream. Raises StructKVError, for the client."""
    body = _read(job)
    on_parsed(isinstance(body, GenerationRequest) and body.stream)
    return _finish(body, job, model)


def do_if_quick(job: Job, model: TextModel) -> Result | None:
    """Do the same for a short body; None where a grammar has to be checked, for which length says nothing."""
    body = _read(job)
    if isinstance(body, GenerationRequest) and has_grammar(body):
        return None
    return _finish(body, job, model)


def _read(job: Job) -> Body:
    body, served = parse(_SCHEMAS[job.kind], job.body), job.rules.model_name
    if body.model not in {None, served}:
        raise ModelNotFoundError(f"the model {body.model!r} does not exist; served is {served!r}", param="model")
    return body


def _finish(body: Body, job: Job, model: TextModel) -> Result:
    if isinstance(body, TokenizeRequest):
        return tokenized(body, model)
    if isinstance(body, DetokenizeRequest):
        return detokenized(body, model)
    rules, grammar = job.rules, grammar_of(body, model)
    prompts = _prompts(body, model)
    for prompt in prompts:
        check_length(body, prompt, rules.max_prompt_tokens)
    requests = plan_all(body, prompts, model, rules.defaults, job.request_id, grammar)
    return accepted(body, prompts, requests, model)


def _prompts(body: CompletionRequest | ChatRequest, model: TextModel) -> list[Prompt]:
    if isinstance(body, ChatRequest):
        return [model.chat_prompt(*conversation(body.messages, body.offered_tools, model))]
    return [model.completion_prompt(prompt) for prompt in body.prompt]
