"""Grammars that an answer follows, in llguidance's serialised form: what is compiled at all. Needs no torch.

A grammar is a client's. Some are deeper than a thread's stack or take minutes to compile, which none of llguidance's
own limits prevents, so what makes them so is counted before it sees them.
"""

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from common.errors import GrammarError

MAX_GRAMMAR_BYTES = 256 * 1024
_MAX_RULES = 1000
_MAX_REFERENCES = 1000
_MAX_OPTIONAL = 1000
_MAX_MULTIPLES = 16
_MAX_MULTIPLE = 100_000
_MAX_REASON_CHARACTERS = 500

LIMITS = LLParserLimits(
    verbose_errors=False,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=20_000,
    max_lexer_states=20_000,
    max_items_in_row=5 * _MAX_OPTIONAL,
)
"""Of one answer's matcher: a fraction of llguidance's own, with which a step takes seconds for a repetition of
repetitions, and so does everybody else's in the batch. Schemas of hundreds of objects need less. Only of items in a row
there are more than the usual 2,000: an object's optional properties take four each, before its first is chosen."""


def check_grammar(grammar: str, param: str | None = None) -> None:
    """Raise GrammarError, naming `param`, for a grammar that is wrong, unsupported or too large."""
    try:
        check_cost(grammar)
        failed, reasons = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
        if failed:
            raise GrammarError(reason_of(reasons[0]))
    except GrammarError as error:
        raise GrammarError(f"{param}: {error}" if param else str(error), param=param) from None


def reason_of(message: str) -> str:
    """Return llguidance's message on one line, without end, and without its mark that it has more to say."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:_MAX_REASON_CHARACTERS]


def check_cost(grammar: str) -> None:
    """Raise GrammarError for a grammar that must not be given to llguidance."""
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar is larger than {MAX_GRAMMAR_BYTES} bytes")
    for entry in _entries(grammar):
        _check_lark(entry.get("lark_grammar") or "")
        _check_schema(entry.get("json_schema"))


def _entries(grammar: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(grammar)["grammars"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GrammarError("the grammar is not in llguidance's serialised form") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GrammarError("the grammar is not in llguidance's serialised form")
    return entries


def _check_lark(lark: object) -> None:
    if not isinstance(lark, str):
        raise GrammarError("a Lark grammar must be text")
    if "%json" in lark:
        raise GrammarError("%json inside a Lark grammar is not supported; use a JSON schema instead")
    # Every rule has a colon, so no chain of rules is longer.
    if lark.count(":") > _MAX_RULES:
        raise GrammarError(f"a grammar may have {_MAX_RULES} rules, counted by their colons")


def _check_schema(schema: object) -> None:
    references, multiples = 0, list[Fraction]()
    for node in _objects(schema):
        references += "$ref" in node
        _check_optional(node)
        multiple = node.get("multipleOf")
        if not isinstance(multiple, int | float) or isinstance(multiple, bool):
            continue  # llguidance says what is wrong with it
        if 0 < multiple < math.inf:
            multiples.append(Fraction(repr(multiple) if isinstance(multiple, float) else multiple))
    if references > _MAX_REFERENCES:
        raise GrammarError(f"a JSON schema may have {_MAX_REFERENCES} $ref")
    if len(set(multiples)) > _MAX_MULTIPLES:
        raise GrammarError(f"a JSON schema may have {_MAX_MULTIPLES} different multipleOf")
    if _common_multiple(multiples) > _MAX_MULTIPLE:
        raise GrammarError(f"the common multiple of all multipleOf, as whole numbers, is over {_MAX_MULTIPLE}")


def _check_optional(node: dict[str, Any]) -> None:
    properties, required = node.get("properties"), node.get("required")
    if not isinstance(properties, dict):
        return
    names = set(filter(_is_text, required)) if isinstance(required, list) else set()
    if len(properties.keys() - names) > _MAX_OPTIONAL:
        raise GrammarError(
            f"an object may have {_MAX_OPTIONAL} optional properties; those that are required do not count"
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _objects(schema: object) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema, without recursion."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def _common_multiple(values: list[Fraction]) -> int:
    """Return how many remainders there are of all values together: each is a state of the compiled form."""
    unit = math.lcm(*(value.denominator for value in values))
    return math.lcm(*(int(value * unit) for value in values))
