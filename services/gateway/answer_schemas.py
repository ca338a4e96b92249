"""What the gateway answers, for its OpenAPI document. The answers themselves are built in `shapes` and `errors`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class _Object(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Object):
    """How many of the prompt's tokens no prefill had to run."""

    cached_tokens: int


class Usage(_Object):
    """OpenAI's token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Stats(_Object):
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


class CompletionChoice(_Object):
    """The one choice of a completion."""

    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: FinishReason


class AssistantMessage(_Object):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Object):
    """The one choice of a chat completion."""

    index: Literal[0]
    message: AssistantMessage
    logprobs: None
    finish_reason: FinishReason


class _Answer(_Object):
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


class CompletionDelta(_Object):
    """A piece of a completion."""

    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: FinishReason | None


class MessageDelta(_Object):
    """A piece of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatDelta(_Object):
    """A piece of a chat completion."""

    index: Literal[0]
    delta: MessageDelta
    logprobs: None
    finish_reason: FinishReason | None


class _Chunk(_Object):
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


class Model(_Object):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(_Object):
    """The served models."""

    object: Literal["list"]
    data: list[Model]


class ErrorDetails(_Object):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Object):
    """Every answer that is not a success."""

    error: ErrorDetails


class Status(_Object):
    """A good answer to a health check."""

    status: Literal["ok", "ready"]


class NotReady(ErrorBody):
    """Why no requests should be sent here now."""

    status: Literal["unavailable", "draining"]
    missing: list[Literal["decode", "prefill"]]
