"""What a chat asks of tools: the grammar that its answers follow, and the parser that takes their calls out."""

from dataclasses import dataclass

from common.errors import InvalidRequestError
from services.gateway.requests.answer_grammar import answer_entry, answer_grammar, asks_for_form
from services.gateway.requests.schemas import ChatRequest, GenerationRequest
from services.gateway.text_model import TextModel
from services.gateway.tools.grammar import calls_or_form, forced_calls, free_text_or_calls
from services.gateway.tools.parser import ToolCallParser


@dataclass(frozen=True, slots=True)
class CallNames:
    """The functions that an answer may call, and whether it may make several calls."""

    names: list[str]
    parallel: bool


def has_grammar(body: GenerationRequest) -> bool:
    """Tell whether a body's answers follow a grammar, without making it."""
    if asks_for_form(body):
        return True
    if not isinstance(body, ChatRequest) or not body.offered_tools:
        return False
    return body.must_call or any(function.strict for function in body.callable_functions)


def grammar_of(body: GenerationRequest, model: TextModel) -> str:
    """Return the grammar that a body's answers follow, "" for none. Takes time for a large one.

    Raises InvalidRequestError, naming the parameter, for one that is wrong or not supported.
    """
    if not isinstance(body, ChatRequest) or not body.offered_tools:
        return answer_grammar(body)
    functions, form, special_ids = body.callable_functions, model.tool_format, model.tool_marker_ids
    if body.must_call:
        return forced_calls(functions, form, special_ids, parallel=body.may_call_many)
    param, content = answer_entry(body)
    if content is not None:
        if not form.begin:
            raise InvalidRequestError(
                f"{param} and tools are only possible together with tool_choice required or none: this model writes "
                "its calls without a marker",
                param=param,
            )
        return calls_or_form(functions, form, special_ids, content, parallel=body.may_call_many)
    if any(function.strict for function in functions):
        return free_text_or_calls(functions, form, special_ids, parallel=body.may_call_many)
    return ""


def call_names(body: GenerationRequest) -> CallNames | None:
    """Return what an answer may call, None if there are no tools."""
    if not isinstance(body, ChatRequest) or not body.offered_tools:
        return None
    return CallNames([function.name for function in body.callable_functions], body.may_call_many)


def parser_of(calls: CallNames | None, model: TextModel) -> ToolCallParser | None:
    """Return a parser for one answer, None if there is nothing to call."""
    return None if calls is None else ToolCallParser(model.tool_format, calls.names, parallel=calls.parallel)
