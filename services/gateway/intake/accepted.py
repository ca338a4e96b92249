"""What is left of a request once its prompts are tokens: nothing that only served to make them is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.pb import decode_pb2
from services.gateway.requests.schemas import CompletionRequest, GenerationRequest, StreamOptions
from services.gateway.text_model import Prompt, TextModel
from services.gateway.tools.request import CallNames, call_names


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """What decode is asked for, and what the answer's text and shape depend on besides.

    Attributes:
        requests: one for each prompt; all have the same parameters.
        n: answers for each prompt.
        priority: that the client asks for; None if it says nothing.
        continues: whether answers go on in their prompts' own texts.
        echoes: for each prompt the text that goes in front of its answers.
        stop: strings that end an answer.
        stop_token_ids: those that the client named.
        min_tokens: tokens in whose text no stop string counts.
        stop_included: whether what ends an answer is part of its text.
        skip_special_tokens: whether special tokens are left out of the text.
        with_logprobs: whether log probabilities are asked for.
        calls: the functions that may be called; None if there are none.
        return_stats: whether the answer tells what became of its prompt.
        stream: what is streamed beside the answer; None for an answer in one piece.
    """

    requests: Sequence[decode_pb2.GenerateRequest]
    n: int
    priority: int | None
    continues: bool
    echoes: Sequence[str]
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    min_tokens: int
    stop_included: bool
    skip_special_tokens: bool
    with_logprobs: bool
    calls: CallNames | None
    return_stats: bool
    stream: StreamOptions | None


def accepted(
    body: GenerationRequest, prompts: Sequence[Prompt], requests: Sequence[decode_pb2.GenerateRequest], model: TextModel
) -> AcceptedRequest:
    """Return what is left of a body."""
    return AcceptedRequest(
        requests=requests,
        n=body.n,
        priority=body.priority if "priority" in body.model_fields_set else None,
        continues=prompts[0].continues,
        echoes=[_echo(body, prompt, place, model) for place, prompt in enumerate(prompts)],
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        min_tokens=body.min_tokens,
        stop_included=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        with_logprobs=body.num_top_logprobs is not None,
        calls=call_names(body),
        return_stats=body.structkv.return_stats,
        stream=(body.stream_options or StreamOptions()) if body.stream else None,
    )


def _echo(body: GenerationRequest, prompt: Prompt, place: int, model: TextModel) -> str:
    if not isinstance(body, CompletionRequest) or not body.echo:
        return ""
    sent = body.prompt[place]
    if isinstance(sent, str):
        return sent
    return model.decode(prompt.token_ids, skip_special_tokens=body.skip_special_tokens)
