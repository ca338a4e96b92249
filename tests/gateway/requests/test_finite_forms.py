"""Forms that no finite answer has are refused, those that have one are not, and what is wrong is named where it is."""

import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from common.errors import InvalidRequestError
from services.gateway.requests.answer_grammar import answer_grammar
from services.gateway.requests.json_finite import without_endless
from services.gateway.requests.schemas import ChatRequest
from services.gateway.requests.structured import StructuredRequest
from services.gateway.text_model import TextModel
from services.gateway.tools.request import grammar_of
from tests.gateway.conftest import Gateway
from tests.gateway.requests.test_structured import json_schema
from tests.gateway.test_api import error_of

SELF = {"$ref": "#"}
LOOP = {"type": "object", "properties": {"loop": {"$ref": "#/$defs/loop"}}, "required": ["loop"]}
TEXT = {"type": "string"}


def obj(required: list[str], **properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


ENDLESS = [
    obj(["next"], next=SELF),
    obj(["a"], a={"$ref": "#/$defs/loop"}) | {"$defs": {"loop": LOOP}},
    obj(["a"], a={"$ref": "#/$defs/b"}) | {"$defs": {"b": obj(["c"], c=SELF)}},
    {"type": "array", "items": SELF, "minItems": 1},
    {"type": "array", "prefixItems": [TEXT, SELF], "minItems": 2},
    {"type": ["object", "array"], "required": ["a"], "properties": {"a": SELF}, "items": SELF, "minItems": 3},
    {"anyOf": [obj(["a"], a=SELF), {"type": "array", "items": SELF, "minItems": 1}]},
    {"oneOf": [{"$ref": "#/$defs/loop"}], "$defs": {"loop": LOOP}},
    {"allOf": [{"required": ["a"]}, {"type": "object", "properties": {"a": SELF}}]},
    {"$ref": "#/$defs/a", "required": ["b"], "$defs": {"a": {"type": "object", "properties": {"b": SELF}}}},
    obj([], a=SELF) | {"anyOf": [{"required": ["a"]}, {"required": ["a"], "minProperties": 1}]},
    {"type": "object", "required": ["x"], "additionalProperties": SELF},
    {"type": "object", "minProperties": 1, "additionalProperties": SELF},
    {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/a~1b%20c"}}, "$defs": {"a/b c": LOOP}}
    | {"$defs": {"a/b c": obj(["d"], d={"$ref": "#/$defs/a~1b%20c"})}},
    {"$ref": "#/components/node", "components": {"node": obj(["n"], n={"$ref": "#/components/node"})}},
    SELF,
    {"anyOf": [SELF, SELF]},
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
]
UNSATISFIABLE = [
    obj(["a"], a=False),
    obj(["a"], a={"enum": []}),
    obj(["a"], a={"anyOf": []}),
    obj(["a"], a={"anyOf": [False, {"allOf": [TEXT, {"type": "null"}]}]}),
    obj(["a"], a={"type": "integer", "minimum": 2, "maximum": 1}),
    obj(["a"], a={"type": "number", "exclusiveMinimum": 1, "maximum": 1}),
    obj(["a"], a={"type": "integer", "minimum": 1, "maximum": 4, "multipleOf": 5}),
    obj(["a"], a={"type": "string", "minLength": 2, "maxLength": 1}),
    obj(["a"], a={"type": "array", "minItems": 2, "maxItems": 1}),
    obj(["a"], a={"type": "array", "items": False, "minItems": 1}),
    obj(["a"], a={"type": "object", "minProperties": 2, "maxProperties": 1}),
    obj(["b"], a=TEXT) | {"additionalProperties": False},
    obj(["a"], a={"type": "string", "const": 5}),
    obj(["a"], a={"type": "string", "enum": [5, None]}),
    obj(["a"], a={"type": "string", "pattern": "^a{5}$", "maxLength": 3}),
    obj(["a"], a={"$ref": "#/$defs/nowhere"}),
    obj(["a"], a={"type": []}),
]
FINITE = [
    (obj([], next=SELF), '{"next": {"next": {}}}'),
    (obj(["next"], next={"anyOf": [SELF, {"type": "null"}]}), '{"next": {"next": null}}'),
    (obj(["items"], items={"type": "array", "items": SELF}), '{"items": [{"items": []}]}'),
    ({"anyOf": [SELF, {"type": "null"}]}, "null"),
    (obj(["value"], value=TEXT, left=SELF, right=SELF), '{"value": "", "left": {"value": ""}}'),
    (obj(["a"], a=TEXT, b={"$ref": "#/$defs/loop"}) | {"$defs": {"loop": LOOP}}, '{"a": ""}'),
    (obj(["a"], a={"anyOf": [{"$ref": "#/$defs/loop"}, TEXT]}) | {"$defs": {"loop": LOOP}}, '{"a": ""}'),
    ({"type": "object", "properties": {"a": {"type": "object", "required": ["b"], "properties": {"b": TEXT}}}}, "{}"),
]


def ask(schema: object) -> str:
    return answer_grammar(StructuredRequest(guided_json=schema))


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_without_a_finite_answer_names_what_requires_itself(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"^guided_json: no finite answer follows the schema: #") as refused:
        ask(schema)
    assert refused.value.param == "guided_json"


def test_what_requires_itself_is_named_by_its_path() -> None:
    with pytest.raises(InvalidRequestError, match=r"#/[$]defs/loop requires itself, at #/[$]defs/loop/prop"):
        ask(obj(["a"], a={"$ref": "#/$defs/loop"}) | {"$defs": {"loop": LOOP}})


@pytest.mark.parametrize("schema", UNSATISFIABLE)
def test_a_schema_without_any_answer_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        ask(schema)
    assert refused.value.param == "guided_json"


@pytest.mark.parametrize(("schema", "answer"), FINITE)
def test_a_schema_with_a_finite_answer_is_served(
    schema: dict[str, Any], answer: str, grammar_tokenizer: LLTokenizer
) -> None:
    matcher = LLMatcher(grammar_tokenizer, ask(schema), log_level=0)
    tokens = grammar_tokenizer.tokenize_str(answer)
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()


@pytest.mark.parametrize("text", ['{"a": "", "b"', '{"a": {'])
def test_an_answer_does_not_get_into_what_has_no_end(text: str, grammar_tokenizer: LLTokenizer) -> None:
    either = {"anyOf": [{"$ref": "#/$defs/loop"}, TEXT]}
    schema = obj(["a"], a=either, b={"$ref": "#/$defs/loop"}) | {"$defs": {"loop": LOOP}}
    matcher = LLMatcher(grammar_tokenizer, ask(schema), log_level=0)
    tokens = grammar_tokenizer.tokenize_str(text)
    assert matcher.try_consume_tokens(tokens) < len(tokens)


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "f"}}, "auto"])
def test_forced_arguments_must_have_an_end_too(tool_choice: object, text_model: TextModel) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": SELF}, "required": ["a"]}}
    body = {"tools": [{"type": "function", "function": function | {"strict": True}}], "tool_choice": tool_choice}
    request = ChatRequest(model="m", messages=[{"role": "user", "content": "a"}], **body)
    with pytest.raises(InvalidRequestError, match="requires itself") as refused:
        grammar_of(request, text_model)
    assert refused.value.param == "tools.0.function.parameters"


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('start: start "a"', "start"),
        ('start: a\na: b "x"\nb: a "y"', "a"),
        ('start: "a" | loop\nloop: "x" loop', "loop"),
        ('start: ("x" start)+', "start"),
        ('start: x\n\nx: "a" (y | z)\ny: "b" y\nz: z "c" // | "d"\n', "y"),
        ('start: a~2..3\na[stop="z"]: a "b"', "a"),
        ('root ::= "a" root', "start"),
    ],
)
def test_a_rule_without_an_end_is_named(grammar: str, rule: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"the rule {rule} requires itself") as refused:
        answer_grammar(StructuredRequest(guided_grammar=grammar))
    assert refused.value.param == "guided_grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        'start: start "a" | "b"',
        'start: "x" start?',
        'start: ["x" start]',
        'start: a\n | "b"\na: "c" a\n | "d"',
        'start: (start "y" | "z")',
        'start: /a\\/b: "c"/ x\nx: "y: x"',
        'start: "a"\nb: b "x"',
        'start: a{2,3} -> name\na: "b".."c" // a: a\n',
        'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"',
    ],
)
def test_a_grammar_with_an_end_is_served(grammar: str) -> None:
    assert answer_grammar(StructuredRequest(guided_grammar=grammar))


WRONG: list[Any] = [True, "1", None, [], {}, [1], -1, 1.5, 0, 10**400, float("nan"), float("inf"), [None], {"a": 5}, ""]
KEYWORDS = [
    *("type", "enum", "const", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "pattern", "format", "$ref"),
    *("required", "anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties", "additionalItems"),
    *("properties", "patternProperties", "$defs", "definitions", "title", "default", "$id", "$schema", "x-guidance"),
]
scalars = st.sampled_from([{"type": "string"}, {"type": "integer"}, {"enum": ["a", 1]}, {"const": None}, True, SELF])
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda a, b: obj(["a"], a=a, b=b), inner, inner),
        st.builds(lambda a: {"type": "array", "items": a, "minItems": 1}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b], "$defs": {"x": a}}, inner, inner),
        st.builds(lambda a, b: {"allOf": [a, b]}, inner, inner),
    ),
    max_leaves=6,
).filter(lambda schema: isinstance(schema, dict))


@settings(max_examples=150, deadline=None)
@given(schema=schemas, key=st.sampled_from(KEYWORDS), value=st.sampled_from(WRONG), seed=st.integers(0, 99))
def test_whatever_stands_in_a_keyword_is_served_or_refused(schema: Any, key: str, value: Any, seed: int) -> None:
    schema = json.loads(json.dumps(schema))
    nodes = [schema]
    for node in nodes:
        inner = node.values() if isinstance(node, dict) else node
        nodes += [entry for entry in inner if isinstance(entry, dict | list)]
    random.Random(seed).choice([node for node in nodes if isinstance(node, dict)])[key] = value
    with contextlib.suppress(InvalidRequestError):
        ask(schema)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("multipleOf", True),
        ("multipleOf", -1),
        ("minimum", "1"),
        ("maximum", 10**400),
        ("maxLength", 2.5),
        ("minItems", -1),
        ("pattern", 5),
        ("required", "a"),
        ("required", [1]),
        ("properties", []),
        ("properties", {"a": "string"}),
        ("items", 5),
        ("anyOf", {}),
        ("anyOf", ["a"]),
        ("additionalProperties", None),
        ("enum", "a"),
        ("type", 5),
        ("$ref", 5),
        ("$defs", {"a": 5}),
        ("const", 10**400),
        ("const", {"a": [float("nan")]}),
    ],
)
def test_a_wrong_value_is_named_by_its_path(keyword: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"guided_json[.]properties[.]a[.]{keyword.replace('$', '[$]')}") as e:
        ask(obj([], a={keyword: value}))
    assert str(e.value.param).startswith(f"guided_json.properties.a.{keyword}")


async def test_a_multiple_of_true_is_the_clients_mistake(gateway: Gateway) -> None:
    error = error_of(await gateway.chat(**json_schema({"type": "integer", "multipleOf": True})), 400)
    assert error["param"] == "response_format.json_schema.schema.multipleOf"
    assert not gateway.decode.requests


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"multipleOf": {"type": "string"}, "required": {"type": "array"}}},
        {"enum": [{"multipleOf": True, "properties": 5}], "default": {"minimum": "x"}},
        {"title": 5, "x-order": [True], "examples": "any"},
    ],
)
def test_only_keywords_are_looked_at(schema: dict[str, Any]) -> None:
    assert ask(schema)


def chain(number: int) -> dict[str, Any]:
    links = {f"d{place}": {"$ref": f"#/$defs/d{(place + 1) % number}"} for place in range(number)}
    return {"$ref": "#/$defs/d0", "$defs": links}


def product(number: int) -> dict[str, Any]:
    either = [{"anyOf": [{"required": [f"a{place}"]}, {"required": [f"b{place}"]}]} for place in range(number)]
    return {"type": "object", "allOf": either, "additionalProperties": SELF}


def wide(number: int) -> dict[str, Any]:
    names = [f"property_{place}" for place in range(number)]
    return obj(names, **{name: {"anyOf": [SELF, TEXT]} for name in names})


@pytest.mark.parametrize("make", [chain, product, wide])
def test_looking_for_an_end_takes_bounded_time(make: Callable[[int], dict[str, Any]]) -> None:
    begun = time.process_time()
    for number in (10, 900, 3000):
        try:
            without_endless(make(number), "schema")
        except InvalidRequestError:
            continue
    assert time.process_time() - begun < 30  # it is a few seconds; the product alone would never end


def test_a_thousand_optional_properties_are_served_and_more_refused() -> None:
    names = [f"property_{place}" for place in range(5000)]
    assert ask({"type": "object", "properties": dict.fromkeys(names[:1000], TEXT)})
    assert ask(obj(names, **dict.fromkeys(names, TEXT)))
    with pytest.raises(InvalidRequestError, match="1000 optional properties"):
        ask({"type": "object", "properties": dict.fromkeys(names[:1001], TEXT)})
