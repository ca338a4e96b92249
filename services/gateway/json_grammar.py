"""JSON schemas as grammars, bounded where a small model would otherwise go on for ever."""

import json
from typing import Any

JsonSchema = dict[str, Any]

_OPTIONS: JsonSchema = {"whitespace_pattern": r"\x20|\n\x20{0,32}"}
"""One space, or a new line and its indentation: what JSON in the wild has. Any amount, as the standard allows, is a
loop that small models do not leave."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "additionalItems")
_COMBINING = {"anyOf", "oneOf", "$ref"}
_OF_OBJECTS = {"properties", "required", "additionalProperties", "patternProperties"}


def json_entry(schema: JsonSchema) -> JsonSchema:
    """Return the entry of a serialised grammar for JSON that a schema describes. Its order of properties is kept."""
    bounded = schema if _combines_objects(schema) else _closed(schema)
    return {"json_schema": {**bounded, "x-guidance": _OPTIONS}}


def serialised(entries: list[JsonSchema]) -> str:
    """Return a grammar's entries, the first of which is the whole, as decode takes them."""
    return json.dumps({"grammars": entries}, separators=(",", ":"))


def _closed(schema: JsonSchema) -> JsonSchema:
    """Return the schema without the properties that it does not name, where it does not say that there may be some.

    What follows it follows the given one too. With them, models do not find an end.
    """
    inner = {key: _closed_within(key, value) for key, value in schema.items()}
    named = schema.get("properties")
    if not isinstance(named, dict) or {"additionalProperties", "patternProperties"} & schema.keys():
        return inner
    required = schema.get("required", [])
    if "minProperties" in schema or not isinstance(required, list) or not set(map(str, required)) <= named.keys():
        return inner
    return {**inner, "additionalProperties": False}


def _closed_within(key: str, value: Any) -> Any:
    if key in _MAPS and isinstance(value, dict):
        return {name: _closed(entry) if isinstance(entry, dict) else entry for name, entry in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [_closed(entry) if isinstance(entry, dict) else entry for entry in value]
    if key in _SINGLES and isinstance(value, dict):
        return _closed(value)
    return value


def _combines_objects(schema: JsonSchema) -> bool:
    """Tell whether a schema may put an object together from several: none of them names all properties then."""
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        if "allOf" in node or (_COMBINING & node.keys() and _OF_OBJECTS & node.keys()):
            return True
        for key in _MAPS:
            pending += node[key].values() if isinstance(node.get(key), dict) else ()
        for key in _LISTS:
            pending += node[key] if isinstance(node.get(key), list) else ()
        pending += [node.get(key) for key in _SINGLES]
    return False
