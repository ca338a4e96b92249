"""What clients may send to be answered: OpenAI's two request bodies, with vLLM's parameters and our own object."""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field, model_validator

from common.errors import InvalidRequestError
from services.gateway.requests.fields import IgnoredMetadata, LogitBias, Prompts, StopStrings
from services.gateway.requests.messages import Messages
from services.gateway.requests.selection_options import StructKVOptions
from services.gateway.requests.strict_body import StrictBody
from services.gateway.requests.structured import StructuredRequest
from services.gateway.requests.unsupported import check_supported, prompt_logprobs_with_echo
from services.gateway.tools.schemas import ToolRequest

MAX_CHOICES = 128
"""Answers of one request, over all its prompts."""

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_TopLogprobs = Annotated[int, Field(ge=0, le=20)]


class StreamOptions(StrictBody):
    """OpenAI's `stream_options`, and vLLM's addition."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(StructuredRequest):
    """What both endpoints understand."""

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    best_of: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    frequency_penalty: _Penalty = 0.0
    presence_penalty: _Penalty = 0.0
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: LogitBias = Field({})
    stop: StopStrings = Field([])
    stop_token_ids: list[int] = Field([], max_length=256)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    user: str | None = None
    store: bool = False
    metadata: IgnoredMetadata = Field({})
    stream: bool = False
    stream_options: StreamOptions | None = None
    structkv: StructKVOptions = StructKVOptions()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if isinstance(data, dict):
            check_supported(data, cls.model_fields)
        return data

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed with stream", param="stream_options")
        if self.best_of not in {None, self.n}:
            raise InvalidRequestError(
                "best_of must be n: to choose among more answers than are returned, ask for all with n and logprobs",
                param="best_of",
            )
        return self

    @property
    def requested_tokens(self) -> int | None:
        """The most tokens that the client wants, by the newer name if it gave both; None if it did not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    @abstractmethod
    def num_top_logprobs(self) -> int | None:
        """How many likeliest tokens are told with each token's log probability; None if that is not asked for."""


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompts
    logprobs: _TopLogprobs | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _check_prompts(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise prompt_logprobs_with_echo()
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise InvalidRequestError(f"a request may ask for up to {MAX_CHOICES} answers over all prompts", param="n")
        if len(self.prompt) > 1 and self.structkv.return_stats:
            raise InvalidRequestError(
                "the statistics are of one prompt: with several, send each in a request of its own",
                param="structkv.return_stats",
            )
        return self

    @property
    def num_top_logprobs(self) -> int | None:
        """What `logprobs` says."""
        return self.logprobs


class ChatRequest(ToolRequest, GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool = False
    top_logprobs: _TopLogprobs = 0

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs is only allowed with logprobs", param="top_logprobs")
        return self

    @property
    def num_top_logprobs(self) -> int | None:
        """What `top_logprobs` says, if `logprobs` asks for any."""
        return self.top_logprobs if self.logprobs else None
