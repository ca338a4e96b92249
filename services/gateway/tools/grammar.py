"""The grammar that has an answer call tools, in the model's own form and with arguments that follow their schemas."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import InvalidRequestError
from common.grammar import check_grammar
from services.gateway.requests.json_grammar import json_entry, serialised
from services.gateway.tools.formats import ToolFormat
from services.gateway.tools.schemas import FunctionDefinition

Entry = dict[str, Any]

_NO_ARGUMENTS: Entry = {"type": "object", "properties": {}}
_ANY_ARGUMENTS: Entry = {"type": "object"}
_TYPED = {"type", "$ref", "anyOf", "oneOf", "allOf"}


def forced_calls(
    functions: Sequence[FunctionDefinition], form: ToolFormat, special_ids: Mapping[str, int], *, parallel: bool
) -> str:
    """Return the grammar of an answer that is calls and nothing else."""
    return _grammar("start: calls", functions, form, special_ids, parallel, [])


def calls_or_form(
    functions: Sequence[FunctionDefinition],
    form: ToolFormat,
    special_ids: Mapping[str, int],
    content: Entry,
    *,
    parallel: bool,
) -> str:
    """Return the grammar of an answer that is calls, or content in a form of its own."""
    entries = [{**content, "name": "content"}]
    return _grammar("start: @content | calls", functions, form, special_ids, parallel, entries)


def free_text_or_calls(
    functions: Sequence[FunctionDefinition], form: ToolFormat, special_ids: Mapping[str, int], *, parallel: bool
) -> str:
    """Return the grammar of an answer that is free until it begins a call; strict functions' arguments then follow."""
    loose = [
        function if function.strict else function.model_copy(update={"parameters": _ANY_ARGUMENTS})
        for function in functions
    ]
    if not form.begin:
        start = "start: TEXT | calls\nTEXT: /([^{\\s](.|\\n)*)?/"
    elif form.begin in special_ids:
        start = "start: TEXT | TEXT calls TEXT\nTEXT: /(.|\\n)*/"
    else:
        begin = json.dumps(form.begin)
        start = f"start: head_call* TEXT\nhead_call: head behind_begin\nhead[lazy]: TEXT {begin}\nTEXT: /(.|\\n)*/"
    return _grammar(start, loose, form, special_ids, parallel, [])


def check_parameters(place: int, function: FunctionDefinition) -> None:
    """Raise InvalidRequestError, naming the parameter, for arguments whose schema is wrong or not supported."""
    param = _param(place)
    check_grammar(serialised([json_entry(_parameters(function), param)]), param)


def _grammar(
    start: str,
    functions: Sequence[FunctionDefinition],
    form: ToolFormat,
    special_ids: Mapping[str, int],
    parallel: bool,
    entries: list[Entry],
) -> str:
    schemas = [
        {**json_entry(_parameters(function), _param(place)), "name": f"arguments_{place}"}
        for place, function in enumerate(functions)
    ]
    lark = "\n".join([start, *_call_rules(functions, form, special_ids, parallel)])
    grammar = serialised([{"lark_grammar": lark}, *entries, *schemas])
    try:
        check_grammar(grammar, "tools")
    except InvalidRequestError:
        for place, function in enumerate(functions):
            check_parameters(place, function)
        raise
    return grammar


def _call_rules(
    functions: Sequence[FunctionDefinition], form: ToolFormat, special_ids: Mapping[str, int], parallel: bool
) -> list[str]:
    """Return the rules of one call or more, `calls`, and of a call behind its begin marker, `behind_begin`."""
    begin, end = _terminal(form.begin, special_ids), _terminal(form.end, special_ids)
    opening, closing, separator = map(json.dumps, (form.opening, form.closing, form.separator))
    objects = [
        f'{json.dumps(_object_head(function, form))} @arguments_{place} "}}"'
        for place, function in enumerate(functions)
    ]
    another_call, another_object = (f" ({separator} {rule})*" if parallel else "" for rule in ("call", "object"))
    if form.repeats_markers:
        calls = [f"calls: call{another_call}", f"call: {begin} behind_begin"]
        calls += [f"behind_begin: {opening} object {closing} {end}"]
    else:
        calls = [f"calls: {begin} behind_begin"]
        calls += [f"behind_begin: {opening} object{another_object} {closing} {end}"]
    return [*calls, f"object: {' | '.join(objects)}"]


def _param(place: int) -> str:
    return f"tools.{place}.function.parameters"


def _object_head(function: FunctionDefinition, form: ToolFormat) -> str:
    return f'{{"name": {json.dumps(function.name)}, "{form.arguments_key}": '


def _terminal(marker: str, special_ids: Mapping[str, int]) -> str:
    return f"<[{special_ids[marker]}]>" if marker in special_ids else json.dumps(marker)


def _parameters(function: FunctionDefinition) -> Entry:
    parameters = _NO_ARGUMENTS if function.parameters is None else function.parameters
    return parameters if _TYPED & parameters.keys() else _ANY_ARGUMENTS | parameters
