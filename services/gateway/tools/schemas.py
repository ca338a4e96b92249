"""Tools as OpenAI's clients send them."""

from typing import Any, Literal

from pydantic import Field

from services.gateway.strict_body import StrictBody

MAX_TOOLS = 128


class FunctionDefinition(StrictBody):
    """A function: what it does, and its arguments as a JSON schema."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(StrictBody):
    """OpenAI's only kind of tool that a model itself can serve."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(StrictBody):
    """A function by its name."""

    name: str


class NamedToolChoice(StrictBody):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class FunctionCall(StrictBody):
    """A call in the conversation so far; `arguments` are an object's JSON."""

    name: str
    arguments: str


class MessageToolCall(StrictBody):
    """A call that the assistant has made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
