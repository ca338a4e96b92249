"""What clients may send: OpenAI's two request bodies and our `structkv` object. Types are not coerced."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from common.errors import InvalidRequestError
from common.skeleton.selection import (
    CODECS,
    GRANULARITIES,
    METHODS,
    PIVOTS,
    RANKINGS,
    SALIENCIES,
    VARIANTS,
    Selection,
)
from services.gateway.fields import MessageText, Prompt, StopStrings

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
"""Parameters that would change the answer and are not served, with the values that ask for nothing."""


class _Body(BaseModel):
    """Strict types, unknown fields tolerated, null the same as absent."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


def _one_of(values: Sequence[str]) -> WithJsonSchema:
    # The selection itself checks them; this is for the published schema.
    return WithJsonSchema({"enum": [*values, None]})


class StreamOptions(_Body):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


MAX_MESSAGES = 2048
"""A template takes time for each message, so that a body full of tiny ones would cost more than its bytes."""

_Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
_Share = Annotated[
    float | None, WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]})
]


class StructKVOptions(_Body):
    """How this prompt is to be reduced; what is absent comes from the gateway's settings."""

    model_config = ConfigDict(extra="forbid")

    method: Annotated[str | None, _one_of(METHODS)] = None
    variant: Annotated[str | None, _one_of(tuple(VARIANTS))] = None
    kv_retention: _Share = None
    kv_tokens: _Uint32 | None = None
    struct_retention: _Share = None
    window_tokens: _Uint32 | None = None
    sink_tokens: _Uint32 | None = None
    floor_tokens: _Uint32 | None = None
    saliency: Annotated[str | None, _one_of(SALIENCIES)] = None
    ranked_by: Annotated[str | None, _one_of(RANKINGS)] = None
    granularity: Annotated[str | None, _one_of(GRANULARITIES)] = None
    pool_tokens: _Uint32 | None = None
    block_tokens: _Uint32 | None = None
    decay: _Share = None
    pivot: Annotated[str | None, _one_of(PIVOTS)] = None
    pivot_layer: _Uint32 | None = None
    codec: Annotated[str | None, _one_of(CODECS)] = None
    return_stats: bool = False

    def choose(self, defaults: Selection) -> Selection:
        """Return the request's selection; raise InvalidRequestError for values out of range."""
        return Selection.of(self.model_dump(exclude={"return_stats"}, exclude_none=True), defaults)


class GenerationRequest(_Body):
    """What both endpoints understand."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: StopStrings = []
    stop_token_ids: list[int] = Field([], max_length=256)
    ignore_eos: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    stream: bool = False
    stream_options: StreamOptions | None = None
    structkv: StructKVOptions = StructKVOptions()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if isinstance(data, dict):
            for name, neutral in UNSUPPORTED.items():
                _check_neutral(name, data.get(name), neutral)
        return data

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed with stream", param="stream_options")
        return self

    @property
    def requested_tokens(self) -> int | None:
        """The most tokens that the client wants, by the newer name if it gave both; None if it did not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: MessageText
    name: str | None = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)


def _check_neutral(name: str, value: object, neutral: tuple[object, ...]) -> None:
    # By type too: 0 == False, but "logprobs": 0 asks for something and "logprobs": false does not.
    if value is None or any(type(value) is type(entry) and value == entry for entry in neutral):
        return
    accepted = f" other than {' or '.join(str(entry) for entry in neutral)}" if neutral else ""
    raise InvalidRequestError(f"{name}{accepted} is not supported", param=name)


BodyT = TypeVar("BodyT", bound=GenerationRequest)


def parse(schema: type[BodyT], raw: bytes) -> BodyT:
    """Read a request body; raise InvalidRequestError that names the first offending field."""
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        message = f"{param}: {first['msg']}" if param else first["msg"]
        raise InvalidRequestError(message, param=param or None) from None
