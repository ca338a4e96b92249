"""JSON schemas as grammars, bounded where a small model would otherwise go on for ever."""

import json
from typing import Any

from services.gateway.requests.json_finite import without_endless
from services.gateway.requests.json_keywords import check_keywords
from services.gateway.requests.json_paths import LISTS, MAPS, SINGLES

JsonSchema = dict[str, Any]

_OPTIONS: JsonSchema = {"whitespace_pattern": r"\x20|\n\x20{0,32}"}
"""One space, or a new line and its indentation: what JSON in the wild has. Any amount, as the standard allows, is a
loop that small models do not leave."""

_WHOLE_NUMBERS: JsonSchema = {"minimum": -9 * 10**18, "maximum": 9 * 10**18}
_BOUNDING = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"}
_COMBINING = {"anyOf", "oneOf", "$ref"}
_OF_OBJECTS = {"properties", "required", "additionalProperties", "patternProperties"}


def json_entry(schema: JsonSchema, param: str) -> JsonSchema:
    """Return the entry of a serialised grammar for JSON that a schema describes. Its order of properties is kept.

    Raises InvalidRequestError, naming the parameter or what is within it, for a schema with a value of a wrong type, or
    that no finite answer follows.
    """
    check_keywords(schema, param)
    schema = without_endless(schema, param)
    return {"json_schema": {**_bounded(schema, closes=not _combines_objects(schema)), "x-guidance": _OPTIONS}}


def serialised(entries: list[JsonSchema]) -> str:
    """Return a grammar's entries, the first of which is the whole, as decode takes them."""
    return json.dumps({"grammars": entries}, separators=(",", ":"))


def _bounded(schema: JsonSchema, *, closes: bool) -> JsonSchema:
    """Return a schema whose answers follow the given one too, and find an end.

    Whole numbers without a bound get 64 bits. With `closes`, objects have no properties but those that they name,
    where they do not say that there may be others.
    """
    inner = {key: _bounded_within(key, value, closes) for key, value in schema.items()}
    if schema.get("type") == "integer" and not _BOUNDING & schema.keys():
        return _WHOLE_NUMBERS | inner
    if closes and _may_close(schema):
        return {**inner, "additionalProperties": False}
    return inner


def _bounded_within(key: str, value: Any, closes: bool) -> Any:
    def bounded(entry: Any) -> Any:
        return _bounded(entry, closes=closes) if isinstance(entry, dict) else entry

    if key in MAPS and isinstance(value, dict):
        return {name: bounded(entry) for name, entry in value.items()}
    if key in LISTS and isinstance(value, list):
        return [bounded(entry) for entry in value]
    return bounded(value) if key in SINGLES else value


def _may_close(schema: JsonSchema) -> bool:
    """Tell whether an object names its properties, and neither asks for others nor says what they would be."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list):
        return False
    others = {"additionalProperties", "patternProperties", "minProperties"} & schema.keys()
    return not others and set(map(str, required)) <= named.keys()


def _combines_objects(schema: JsonSchema) -> bool:
    """Tell whether a schema may put an object together from several: none of them names all properties then."""
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        if "allOf" in node or (_COMBINING & node.keys() and _OF_OBJECTS & node.keys()):
            return True
        for key in MAPS:
            pending += node[key].values() if isinstance(node.get(key), dict) else ()
        for key in LISTS:
            pending += node[key] if isinstance(node.get(key), list) else ()
        pending += [node.get(key) for key in SINGLES]
    return False
