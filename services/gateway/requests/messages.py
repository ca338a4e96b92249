"""The messages of a conversation, as OpenAI's clients send them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict

from common.errors import InvalidRequestError
from services.gateway.requests.fields import MessageText
from services.gateway.requests.parameter_errors import InvalidParameterError
from services.gateway.requests.strict_body import StrictBody
from services.gateway.tools.schemas import MAX_TOOLS, MessageToolCall

MAX_MESSAGES = 2048
"""A template takes time for each message, so that a body full of tiny ones would cost more than its bytes."""

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


Messages = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), AfterValidator(_speaking)
]
