"""What of a grammar is let through to llguidance, which some would bring down."""

import json
import subprocess
import sys

import pytest

from common.errors import InvalidRequestError
from common.grammar import MAX_GRAMMAR_BYTES, check_cost, check_grammar

CHAIN = 1000


def of_schema(schema: object) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def of_lark(lark: object) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def references(number: int) -> dict:
    chain = {f"d{place}": {"$ref": f"#/$defs/d{place + 1}"} for place in range(number - 1)}
    return {"$defs": chain | {f"d{number - 1}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def rules(number: int, name: str) -> str:
    chain = "\n".join(f'{name}{place}: {name}{place + 1} "x"' for place in range(number - 2))
    return f'start: {name}0\n{chain}\n{name}{number - 2}: "a"'


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (of_schema(references(CHAIN + 1)), r"1000 \$ref"),
        (of_lark(rules(CHAIN + 1, "r")), "1000 rules"),
        (of_lark(5), "must be text"),
        (of_lark("start: %json {}"), "%json"),
        (of_schema({"enum": ["x" * MAX_GRAMMAR_BYTES]}), "larger than"),
        (of_schema({"multipleOf": 100_003}), "common multiple"),
        (of_schema({"multipleOf": 10**300}), "common multiple"),
        (of_schema({"allOf": [{"multipleOf": 997}, {"items": {"multipleOf": 991}}]}), "common multiple"),
        (of_schema({"anyOf": [{"multipleOf": 0.001}, {"multipleOf": 101}]}), "common multiple"),
        (of_schema({"anyOf": [{"multipleOf": 1 / place} for place in range(1, 18)]}), "16 different multipleOf"),
        ("start: x", "serialised form"),
        ("[]", "serialised form"),
        ('{"grammars": [1]}', "serialised form"),
        ('{"grammars": ' + "[" * 100_000, "serialised form"),
    ],
)
def test_what_costs_too_much_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        check_cost(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        of_schema(references(CHAIN)),
        of_lark(rules(CHAIN, "r")),
        of_lark(rules(CHAIN, "R")),
        of_schema({"anyOf": [{"multipleOf": 0.01}, {"multipleOf": 5}]}),
        of_schema({"properties": {"multipleOf": {"type": "string"}}}),
    ],
)
def test_what_is_let_through_is_survived(grammar: str) -> None:
    program = "import sys; from common.grammar import check_grammar; check_grammar(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", program], input=grammar, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mistake_names_its_parameter() -> None:
    with pytest.raises(InvalidRequestError, match="form: Unimplemented") as refused:
        check_grammar(of_schema({"not": {}}), "form")
    assert refused.value.param == "form"
