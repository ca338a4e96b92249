"""The grammar that a body asks its answers to follow, in llguidance's serialised form."""

import json
import string
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from common.errors import InvalidRequestError
from common.grammar import MAX_GRAMMAR_BYTES, check_grammar, reason_of
from services.gateway.requests.json_grammar import JsonSchema, json_entry, serialised
from services.gateway.requests.lark_finite import check_ends
from services.gateway.requests.structured import ResponseFormat, StructuredOutputs, StructuredRequest

_ANY_OBJECT: JsonSchema = {"type": "object"}

Named = tuple[str, JsonSchema | None]

_LITERAL = frozenset(string.ascii_letters + string.digits)


def asks_for_form(body: StructuredRequest) -> bool:
    """Tell whether a body asks for a form, which may yet be wrong."""
    forms = (body.structured_outputs, body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    has_format = body.response_format is not None and body.response_format.type != "text"
    return has_format or any(form is not None for form in forms)


def answer_grammar(body: StructuredRequest) -> str:
    """Return the grammar of the answer's text, "" if there is none. Takes time for a large one.

    Raises InvalidRequestError, naming the parameter, for one that is wrong or not supported.
    """
    _, entry = answer_entry(body)
    return "" if entry is None else serialised([entry])


def answer_entry(body: StructuredRequest) -> Named:
    """Return the parameter that asks for a form, and that as an entry of a grammar; ("", None) if none does."""
    try:
        param, entry = _of_format(body.response_format) or _of_outputs(body.structured_outputs) or _of_guided(body)
        if entry is not None:
            check_grammar(serialised([entry]), param)
    except RecursionError:
        raise InvalidRequestError("the schema is nested too deeply") from None
    return param, entry


def _of_format(wanted: ResponseFormat | None) -> Named | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return "response_format", json_entry(_ANY_OBJECT, "response_format")
    param = "response_format.json_schema.schema"
    return param, json_entry(wanted.json_schema.schema_, param)


def _of_outputs(wanted: StructuredOutputs | None) -> Named | None:
    if wanted is None:
        return None
    ((name, value),) = wanted.model_dump(by_alias=True, exclude_none=True).items()
    param = f"structured_outputs.{name}"
    return param, _entry(name, value, param)


def _of_guided(body: StructuredRequest) -> Named:
    for name in ("json", "regex", "choice", "grammar"):
        param = f"guided_{name}"
        if (value := getattr(body, param)) is not None:
            return param, _entry(name, value, param)
    return "", None


def _entry(kind: str, value: Any, param: str) -> JsonSchema:
    """Return one kind of form as an entry of a grammar."""
    match kind:
        case "json":
            return json_entry(_parsed(value, param) if isinstance(value, str) else value, param)
        case "json_object":
            return json_entry(_ANY_OBJECT, param)
        case "regex":
            return {"lark_grammar": f"start: /{regex_to_lark(value, '')}/"}
        case "choice":
            return {"lark_grammar": f"start: /{'|'.join(map(_literally, value))}/"}
    return {"lark_grammar": _as_lark(value, param)}


def _parsed(text: str, param: str) -> JsonSchema:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{param} must be a JSON schema: an object, or an object's JSON", param=param)
    return schema


def _literally(text: str) -> str:
    """Return a regular expression for a text as it is."""
    return "".join(char if char in _LITERAL else f"\\x{{{ord(char):X}}}" for char in text)


def _as_lark(text: str, param: str) -> str:
    """Return a Lark grammar as it is, and llama.cpp's GBNF as one."""
    if len(text) > MAX_GRAMMAR_BYTES:
        raise InvalidRequestError(f"{param} is larger than {MAX_GRAMMAR_BYTES} bytes", param=param)
    try:
        lark: str = any_to_lark(text)
    except Exception as error:  # the library raises no narrower type
        raise InvalidRequestError(f"{param} is neither Lark nor GBNF: {reason_of(str(error))}", param=param) from error
    check_ends(lark, param)
    return lark
