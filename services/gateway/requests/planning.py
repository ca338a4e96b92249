"""From a validated body and its tokens to what decode is asked for. Everything implicit becomes explicit here."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from common.errors import ContextLengthError, InvalidRequestError
from common.pb import decode_pb2
from common.skeleton.selection import Selection
from services.gateway.requests.schemas import ChatRequest, GenerationRequest
from services.gateway.text_model import Prompt, TextModel

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's `max_tokens` for completions; a chat answer may fill the context."""


def check_length(body: GenerationRequest, prompt: Prompt, max_prompt_tokens: int) -> None:
    """Raise ContextLengthError for a prompt beyond the gateway's own limit; 0 is none."""
    prompt_tokens = len(prompt.token_ids)
    if 0 < max_prompt_tokens < prompt_tokens:
        raise ContextLengthError(
            f"the prompt is too long: it has {prompt_tokens} tokens, and up to {max_prompt_tokens} are served",
            param=_prompt_param(body),
        )


def plan_all(
    body: GenerationRequest,
    prompts: Sequence[Prompt],
    model: TextModel,
    defaults: Selection,
    request_id: str,
    grammar: str = "",
) -> list[decode_pb2.GenerateRequest]:
    """Return a request for decode for each prompt; all have the same parameters. Raises as `plan` does."""
    seed = secrets.randbits(64) if body.seed is None else body.seed % 2**64
    names = [request_id] if len(prompts) == 1 else [f"{request_id}-{place}" for place in range(len(prompts))]
    requests = [plan(body, prompt, model, defaults, name, seed) for name, prompt in zip(names, prompts, strict=True)]
    for request in requests:
        request.sampling.grammar = grammar
    return requests


def plan(
    body: GenerationRequest, prompt: Prompt, model: TextModel, defaults: Selection, request_id: str, seed: int
) -> decode_pb2.GenerateRequest:
    """Return the request for decode, all but the prefill targets.

    Raises InvalidRequestError for an empty prompt, unknown token ids or a selection out of range, and
    ContextLengthError if the answer asked for does not fit behind the prompt.
    """
    if not prompt.token_ids:
        raise InvalidRequestError("the prompt must not be empty", param="prompt")
    return decode_pb2.GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt.token_ids,
        selection=_selection(body, prompt, defaults).to_pb(),
        sampling=_sampling(body, prompt, model, seed),
        answers=[decode_pb2.AnswerSoFar() for _ in range(body.n)],
    )


def _selection(body: GenerationRequest, prompt: Prompt, defaults: Selection) -> Selection:
    """Return how the prompt is reduced.

    The window must see the question. A completion's last tokens are the client's own. A chat prompt ends with
    the template's closing tokens (`<|im_end|>\\n<|im_start|>assistant\\n` and the like), which look at nothing in
    particular. So they are counted on top, and as much of the user's last words is observed as in a completion. A
    window that the client gave is taken as it is.
    """
    selection = body.structkv.choose(defaults)
    if body.structkv.window_tokens is not None:
        return selection
    return replace(selection, window_tokens=selection.window_tokens + prompt.closing_tokens)


def _sampling(body: GenerationRequest, prompt: Prompt, model: TextModel, seed: int) -> decode_pb2.Sampling:
    max_tokens = _max_tokens(body, len(prompt.token_ids), model.context_tokens)
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens is {body.min_tokens}, and the answer has up to {max_tokens} tokens", param="min_tokens"
        )
    for token_id in body.logit_bias:
        model.check_token_id(token_id, "logit_bias")
    return decode_pb2.Sampling(
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        stop_token_ids=_stop_token_ids(body, model),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        top_logprobs=body.num_top_logprobs,
    )


def _max_tokens(body: GenerationRequest, prompt_tokens: int, context_tokens: int) -> int:
    room = context_tokens - prompt_tokens
    default = room if isinstance(body, ChatRequest) else min(DEFAULT_COMPLETION_TOKENS, room)
    requested = body.requested_tokens or default
    if room < 1 or requested > room:
        raise ContextLengthError(
            # Worded so that litellm and LangChain, which look for these phrases, raise what they have for it.
            f"the prompt is too long for this answer: this model's maximum context length is {context_tokens} tokens, "
            f"the prompt has {prompt_tokens}, and the answer asks for {max(1, requested)}",
            param=_prompt_param(body),
        )
    return requested


def _prompt_param(body: GenerationRequest) -> str:
    return "messages" if isinstance(body, ChatRequest) else "prompt"


def _stop_token_ids(body: GenerationRequest, model: TextModel) -> list[int]:
    for token_id in body.stop_token_ids:
        model.check_token_id(token_id, "stop_token_ids")
    eos = () if body.ignore_eos else model.eos_token_ids
    return list(dict.fromkeys((*eos, *body.stop_token_ids)))
