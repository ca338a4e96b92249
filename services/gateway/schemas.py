"""What clients may send to be answered: OpenAI's two request bodies, with vLLM's parameters and our own object."""

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from common.errors import InvalidRequestError
from services.gateway.fields import LogitBias, MessageText, Prompts, StopStrings
from services.gateway.parameter_errors import InvalidParameterError
from services.gateway.selection_options import StructKVOptions
from services.gateway.strict_body import StrictBody
from services.gateway.structured import StructuredRequest
from services.gateway.tools.schemas import (
    MAX_TOOLS,
    FunctionDefinition,
    MessageToolCall,
    NamedToolChoice,
    Tool,
    ToolChoice,
)
from services.gateway.unsupported import check_supported, prompt_logprobs_with_echo

MAX_MESSAGES = 2048
"""A template takes time for each message, so that a body full of tiny ones would cost more than its bytes."""

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
    metadata: dict[str, str] = Field({})
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


_WITH_CONTENT: JsonDict = {
    "properties": {"content": {"type": ["string", "array"]}, "tool_calls": {"type": ["null", "array"], "maxItems": 0}},
    "required": ["content"],
}
_WITH_CALLS: JsonDict = {
    "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
    "required": ["tool_calls"],
}


class Message(StrictBody):
    """One message of a conversation."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_WITH_CONTENT, _WITH_CALLS]})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: MessageText | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] = Field([], max_length=MAX_TOOLS)
    tool_call_id: str | None = None


def _speaking(messages: list[Message]) -> list[Message]:
    for place, message in enumerate(messages):
        if message.tool_calls and message.role != "assistant":
            param = f"messages.{place}.tool_calls"
            raise InvalidRequestError(f"{param}: only an assistant's message has calls", param=param)
        if message.content is None and not message.tool_calls:
            param = f"messages.{place}.content"
            raise InvalidParameterError(f"{param}: required", param=param, openai_code="missing_required_parameter")
    return messages


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(_speaking)]


def _distinct(tools: list[Tool]) -> list[Tool]:
    if len({tool.function.name for tool in tools}) < len(tools):
        raise PydanticCustomError("tools", "every function needs a name of its own")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_distinct)]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool = False
    top_logprobs: _TopLogprobs = 0
    tools: Tools = Field([])
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def callable_functions(self) -> list[FunctionDefinition]:
        """The functions that an answer may call: all that are offered, or the one that it must."""
        functions = [tool.function for tool in self.offered_tools]
        if isinstance(self.tool_choice, NamedToolChoice):
            return [function for function in functions if function.name == self.tool_choice.function.name]
        return functions

    @property
    def must_call(self) -> bool:
        """Whether an answer is calls and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

    @property
    def may_call_many(self) -> bool:
        """Whether an answer may have several calls."""
        return self.parallel_tool_calls and not isinstance(self.tool_choice, NamedToolChoice)

    @model_validator(mode="after")
    def _check_tools(self) -> "ChatRequest":
        if self.must_call and not self.callable_functions:
            raise InvalidRequestError("tool_choice asks for a function that is not in tools", param="tool_choice")
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs is only allowed with logprobs", param="top_logprobs")
        return self

    @property
    def num_top_logprobs(self) -> int | None:
        """What `top_logprobs` says, if `logprobs` asks for any."""
        return self.top_logprobs if self.logprobs else None
