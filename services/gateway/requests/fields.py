"""The fields of a request's body that come in more than one form, each with what it becomes."""

import re
from itertools import islice
from typing import Annotated, Literal, TypeGuard

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 64
"""Prompts of one request: each is a call to decode, and all of them run at once."""

_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Many = Field(min_length=1, max_length=MAX_PROMPTS)
_PromptInput = _Text | _TokenIds | Annotated[list[_Text], _Many] | Annotated[list[_TokenIds], _Many]


def _prompts(value: object) -> list[str | list[int]]:
    """Accept a text, token ids, or a list of either."""
    if isinstance(value, str) or _are_token_ids(value):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "must be a string, a list of token ids, or a list of either")
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"a request may have up to {MAX_PROMPTS} prompts")
    if not all(isinstance(entry, str) for entry in value) and not all(map(_are_token_ids, value)):
        raise PydanticCustomError("prompt", "must be all text, or all token ids, which are integers")
    if not value or not all(value):
        raise PydanticCustomError("prompt", "the prompt must not be empty")
    return value


def _are_token_ids(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(entry) is int for entry in value)


Prompts = Annotated[list[str | list[int]], PlainValidator(_prompts, json_schema_input_type=_PromptInput)]

MAX_BIASED_TOKENS = 1024
_TokenIdText = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_BiasInput = Annotated[dict[_TokenIdText, _Bias], Field(max_length=MAX_BIASED_TOKENS)]
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


def _logit_bias(value: object) -> dict[int, float]:
    """Accept an object whose names are token ids."""
    if not isinstance(value, dict) or len(value) > MAX_BIASED_TOKENS:
        raise PydanticCustomError("bias", f"must be an object with up to {MAX_BIASED_TOKENS} token ids")
    if not all(isinstance(token, str) and _TOKEN_ID.fullmatch(token) for token in value):
        raise PydanticCustomError("bias", 'names must be token ids, as in {"50256": -100}')
    if not all(type(bias) in {int, float} and -100 <= bias <= 100 for bias in value.values()):
        raise PydanticCustomError("bias", "biases must be numbers from -100 to 100")
    return {int(token): float(bias) for token, bias in value.items()}


LogitBias = Annotated[dict[int, float], PlainValidator(_logit_bias, json_schema_input_type=_BiasInput)]


class TextPart(BaseModel):
    """A part of a message's content, as the published schema shows it."""

    type: Literal["text"]
    text: str


def _message_text(value: object) -> object:
    """Join text parts with newlines; they are separate blocks, and gluing them would join words."""
    if not isinstance(value, list):
        return value
    if not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        raise PydanticCustomError("content", "only text parts are supported")
    return "\n".join(part["text"] for part in value)


MessageText = Annotated[str, BeforeValidator(_message_text, json_schema_input_type=str | list[TextPart])]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _metadata(value: object) -> object:
    """Check an object of texts, which nothing is done with, up to its first mistake, and do not keep it."""
    if not isinstance(value, dict):
        return value
    wrong = ((name, entry) for name, entry in value.items() if not isinstance(entry, str))
    return dict(islice(wrong, 1))


IgnoredMetadata = Annotated[dict[str, str], BeforeValidator(_metadata, json_schema_input_type=dict[str, str])]

_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(max_length=16)]
StopStrings = Annotated[_StopStrings, BeforeValidator(_as_list, json_schema_input_type=_StopString | _StopStrings)]
