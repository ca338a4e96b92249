"""Tools as OpenAI's clients send them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from common.errors import InvalidRequestError
from services.gateway.requests.strict_body import StrictBody

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


def _distinct(tools: list[Tool]) -> list[Tool]:
    if len({tool.function.name for tool in tools}) < len(tools):
        raise PydanticCustomError("tools", "every function needs a name of its own")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_distinct)]


class ToolRequest(StrictBody):
    """The fields of a chat's body that have to do with tools."""

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
    def _check_tools(self) -> Self:
        if self.must_call and not self.callable_functions:
            raise InvalidRequestError("tool_choice asks for a function that is not in tools", param="tool_choice")
        return self
