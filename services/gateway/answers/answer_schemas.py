"""What the gateway generates, for its OpenAPI document. The answers themselves are built in `shapes`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]


class ExactObject(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(ExactObject):
    """How many of the prompt's tokens no prefill had to run."""

    cached_tokens: int


class Usage(ExactObject):
    """OpenAI's token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Stats(ExactObject):
    """What became of the prompt; with `return_stats` only."""

    method: str
    prompt_tokens: int
    pivot_layer: int | None
    kept_tokens_per_layer: list[int]
    skeleton_bytes: int
    full_kv_bytes: int
    transport: str
    prefill_seconds: float
    transfer_seconds: float
    queue_seconds: float
    ttft_seconds: float


class CompletionLogprobs(ExactObject):
    """Log probabilities of a completion's tokens: an entry for each in every list."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TopLogprob(ExactObject):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """A token of a message, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ExactObject):
    """Log probabilities of a message's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None


class _Finished(ExactObject):
    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None


class _Delta(ExactObject):
    index: int
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None


class CompletionChoice(_Finished):
    """One answer of a completion."""

    text: str
    logprobs: CompletionLogprobs | None


class CalledFunction(ExactObject):
    """The function that is called, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(ExactObject):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(ExactObject):
    """The answer to a conversation; without content where there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Finished):
    """One answer of a chat completion."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class _Answer(ExactObject):
    id: str
    created: int
    model: str
    usage: Usage
    structkv: Stats | None = None


class Completion(_Answer):
    """A plain answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatCompletion(_Answer):
    """A plain answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionDelta(_Delta):
    """A piece of a completion."""

    text: str
    logprobs: CompletionLogprobs | None


class FunctionDelta(ExactObject):
    """A piece of a call: the name comes first, then the arguments' JSON."""

    name: str | None = None
    arguments: str


class ToolCallPiece(ExactObject):
    """A piece of the call with this index; the first one has its identity."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(ExactObject):
    """A piece of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatDelta(_Delta):
    """A piece of a chat completion."""

    delta: MessageDelta
    logprobs: ChatLogprobs | None


class _Chunk(ExactObject):
    id: str
    created: int
    model: str
    usage: Usage | None = None
    structkv: Stats | None = None


class CompletionChunk(_Chunk):
    """An event of a stream of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionDelta]


class ChatCompletionChunk(_Chunk):
    """An event of a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatDelta]
