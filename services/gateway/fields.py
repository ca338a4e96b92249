"""The fields of a request's body that come in more than one form, each with what it becomes."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_One = Field(min_length=1, max_length=1)
_PromptInput = _Text | _TokenIds | Annotated[list[_Text], _One] | Annotated[list[_TokenIds], _One]


def _one_prompt(value: object) -> str | list[int]:
    """Accept a text, token ids, or a list with one of either."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids")
    if any(isinstance(entry, str | list) for entry in value):
        raise PydanticCustomError("prompt", "only one prompt per request is supported")
    if not all(type(entry) is int for entry in value):
        raise PydanticCustomError("prompt", "token ids must be integers")
    return value


Prompt = Annotated[str | list[int], PlainValidator(_one_prompt, json_schema_input_type=_PromptInput)]


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


_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(max_length=16)]
StopStrings = Annotated[_StopStrings, BeforeValidator(_as_list, json_schema_input_type=_StopString | _StopStrings)]
