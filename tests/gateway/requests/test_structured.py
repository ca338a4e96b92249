"""Forms of an answer: the grammar that reaches decode, judged by llguidance itself, and what is refused before."""

import json
import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from services.gateway.text_model import TextModel
from tests.gateway.answers.test_agreement import GRAMMAR
from tests.gateway.conftest import Gateway, events
from tests.gateway.test_api import error_of

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


def json_schema(schema: object, **options: object) -> dict:
    wanted = {"name": "answer", "schema": schema} | options
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


async def grammar_for(gateway: Gateway, body: dict) -> str:
    """Return the grammar that decode gets; both endpoints send the same."""
    for ask in (gateway.complete, gateway.chat):
        response = await ask(**body)
        assert response.status_code == 200, response.text
    first, second = (request.sampling.grammar for request in gateway.decode.requests)
    assert first == second
    return first


def follows(text: str, grammar: str, grammar_tokenizer: LLTokenizer) -> bool:
    matcher = LLMatcher(grammar_tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = grammar_tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("body", "fit", "unfit"),
    [
        (json_schema(PERSON), ['{"name": "Ada", "age": 36}', '{\n  "name": "Ada"\n}'], ['{"age": 36}', "Ada"]),
        (json_schema(PERSON, strict=True, description="a person"), ['{"name":"Ada"}'], ['{"name": 5}']),
        ({"response_format": {"type": "json_object"}}, ['{"a": [1, {"b": null}]}', "{}"], ["[1]", "5", "{"]),
        ({"structured_outputs": {"json": PERSON}}, ['{"name": "Ada"}'], ["Ada"]),
        ({"structured_outputs": {"json": json.dumps(PERSON)}}, ['{"name": "Ada"}'], ["Ada"]),
        ({"structured_outputs": {"json_object": True}}, ['{"a": 1}'], ["a"]),
        ({"structured_outputs": {"regex": r"^[a-z]+@\w+/\d{2}$"}}, ["ada@home/36"], ["ada@home/3", "^a@b/12$"]),
        ({"structured_outputs": {"choice": ["no", "not", 'é/"\\\n x']}}, ["no", "not", 'é/"\\\n x'], ["n", "nott"]),
        ({"structured_outputs": {"grammar": 'start: "a" rest\nrest: "b"+'}}, ["abb"], ["a"]),
        ({"structured_outputs": {"grammar": 'root ::= "a" ("b" | "c")'}}, ["ac"], ["a"]),
        ({"guided_json": PERSON}, ['{"name": "Ada"}'], ["Ada"]),
        ({"guided_regex": "a+"}, ["aa"], ["b"]),
        ({"guided_choice": ["a", "b"]}, ["b"], ["c"]),
        ({"guided_grammar": 'start: "a"'}, ["a"], ["b"]),
        ({"guided_choice": ["a"], "response_format": {"type": "text"}}, ["a"], ["b"]),
    ],
)
async def test_a_form_reaches_decode_as_a_grammar(
    gateway: Gateway, grammar_tokenizer: LLTokenizer, body: dict, fit: list[str], unfit: list[str]
) -> None:
    grammar = await grammar_for(gateway, body)
    assert [text for text in fit if not follows(text, grammar, grammar_tokenizer)] == []
    assert [text for text in unfit if follows(text, grammar, grammar_tokenizer)] == []


@pytest.mark.parametrize("body", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
async def test_without_a_form_there_is_no_grammar(gateway: Gateway, body: dict) -> None:
    assert await grammar_for(gateway, body) == ""


@pytest.mark.parametrize("text", ['{"name":  "Ada"}', '{\n\n"name": "Ada"}', '{"name": "Ada"\n' + " " * 33 + "}"])
async def test_white_space_is_bounded(gateway: Gateway, grammar_tokenizer: LLTokenizer, text: str) -> None:
    json.loads(text)
    assert not follows(text, await grammar_for(gateway, json_schema(PERSON)), grammar_tokenizer)


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        (PERSON, '{"name": "Ada", "more": 1}', False),
        (PERSON | {"additionalProperties": True}, '{"name": "Ada", "more": 1}', True),
        (PERSON | {"minProperties": 3, "required": ["name", "age"]}, '{"name": "Ada", "age": 1, "more": 1}', True),
        (PERSON | {"required": ["more"]}, '{"name": "Ada", "more": 1}', True),
        ({"allOf": [PERSON, {"properties": {"more": {}}, "required": ["more"]}]}, '{"name": "Ada", "more": 1}', True),
        ({"type": "array", "items": PERSON}, '[{"name": "Ada", "more": 1}]', False),
        ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, '{"name": "Ada", "more": 1}', False),
        ({"type": "integer"}, "-9000000000000000000", True),
        ({"type": "integer"}, "1" * 20, False),
        ({"type": "array", "items": {"type": "integer", "minimum": 0}}, f"[{'1' * 20}]", True),
        ({"type": "object", "properties": {"properties": PERSON}}, '{"properties": {"name": "Ada"}}', True),
    ],
)
async def test_what_a_schema_leaves_open_is_bounded_unless_it_says_otherwise(
    gateway: Gateway, grammar_tokenizer: LLTokenizer, schema: dict, text: str, allowed: bool
) -> None:
    assert follows(text, await grammar_for(gateway, json_schema(schema)), grammar_tokenizer) is allowed


SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        (json_schema({"not": {"type": "string"}}), SCHEMA, r'Unimplemented keys: \["not"\]'),
        (json_schema({"type": "array", "uniqueItems": True}), SCHEMA, "uniqueItems"),
        (json_schema({"if": {}, "then": {}}), SCHEMA, "if"),
        (json_schema({"type": "string", "format": "colour"}), SCHEMA, "Unknown format: colour"),
        (json_schema({"type": "string", "pattern": "(?=a)"}), SCHEMA, "look-around"),
        (json_schema({"$ref": "#/$defs/nowhere"}), SCHEMA, "does not exist"),
        (json_schema({"$ref": "https://example.com/schema"}), SCHEMA, "example.com"),
        (json_schema({"type": "number", "minimum": 5, "maximum": 3}), SCHEMA, "minimum"),
        (json_schema({"type": "integer", "multipleOf": 10**9}), SCHEMA, "common multiple"),
        (json_schema({"type": "strin"}), SCHEMA, "Invalid type"),
        (json_schema({"x-guidance": {"lenient": True}, "not": {}}), SCHEMA, "Unimplemented"),
        (json_schema({"enum": ["x" * 300_000]}), SCHEMA, "larger than"),
        (json_schema("string"), SCHEMA, "object"),
        (json_schema({}, name="no name"), "response_format.json_schema.name", "pattern"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, SCHEMA, "required"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs it"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": "json_object"}, "response_format", ""),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex", "unclosed"),
        ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs.regex", "look-around"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json", "must be a JSON schema"),
        ({"structured_outputs": {"json": '{"a":' * 5000}}, "structured_outputs.json", "must be a JSON schema"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "not"),
        ({"structured_outputs": {"grammar": "??"}}, "structured_outputs.grammar", "neither Lark nor GBNF"),
        ({"structured_outputs": {"grammar": "start: other"}}, "structured_outputs.grammar", "other"),
        ({"structured_outputs": {"grammar": "start: %json {}"}}, "structured_outputs.grammar", "%json"),
        ({"structured_outputs": {"grammar": "start: a0\n" + "a: a\n" * 1001}}, "structured_outputs.grammar", "rules"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "True"),
        (
            {"structured_outputs": {"whitespace_pattern": " *"}},
            "structured_outputs.whitespace_pattern",
            "not permitted",
        ),
        ({"guided_regex": "["}, "guided_regex", "unclosed"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "together"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "together"),
    ],
)
async def test_a_wrong_form_is_refused_before_anything_runs(
    gateway: Gateway, body: dict, param: str, reason: str
) -> None:
    for ask in (gateway.complete, gateway.chat):
        error = error_of(await ask(**body), 400)
        assert error["param"] == param
        assert re.search(reason, error["message"], re.IGNORECASE)
    assert not gateway.decode.requests


async def test_an_answer_that_its_grammar_ends_has_its_last_token_and_stops(
    gateway: Gateway, text_model: TextModel
) -> None:
    gateway.decode.script = events(text_model.tokenizer.encode('{"a": 1}').ids, GRAMMAR)
    choice = (await gateway.complete(response_format={"type": "json_object"})).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ('{"a": 1}', "stop")
