"""What a chat asks of tools: the grammar that its answers follow, and the parser that takes their calls out."""

from common.errors import InvalidRequestError
from services.gateway.requests.answer_grammar import answer_entry, answer_grammar
from services.gateway.requests.schemas import ChatRequest, GenerationRequest
from services.gateway.text_model import TextModel
from services.gateway.tools.grammar import calls_or_form, forced_calls, free_text_or_calls
from services.gateway.tools.parser import ToolCallParser


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


def parser_of(body: GenerationRequest, model: TextModel) -> ToolCallParser | None:
    """Return a parser for one answer, None if there are no tools to call."""
    if not isinstance(body, ChatRequest) or not body.offered_tools:
        return None
    names = [function.name for function in body.callable_functions]
    return ToolCallParser(model.tool_format, names, parallel=body.may_call_many)
