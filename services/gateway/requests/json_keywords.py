"""What the keywords of a JSON schema may be: a wrong one is named by its own path."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from services.gateway.requests.json_paths import schemas_in
from services.gateway.requests.parameter_errors import InvalidParameterError

_LARGEST = 2**1023
_MOST_SHOWN = 200


def _is_number(value: Any) -> bool:
    return type(value) in {int, float}


def _is_bound(value: Any) -> bool:
    return _is_number(value) or type(value) is bool  # an exclusive one, as older drafts have it


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_schema, value))


def _are_named_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


_Check = tuple[Callable[[Any], bool], str]

_NUMBER: _Check = _is_number, "a number"
_BOUND: _Check = _is_bound, "a number"
_COUNT: _Check = _is_count, "a whole number, 0 or more"
_TEXT: _Check = _is_text, "a string"
_SCHEMA: _Check = _is_schema, "a schema: an object or a boolean"
_SCHEMAS: _Check = _are_schemas, "a list of schemas: objects or booleans"
_NAMED: _Check = _are_named_schemas, "an object of schemas: objects or booleans"

_KEYWORDS: dict[str, _Check] = {
    "type": (lambda value: _is_text(value) or _are_texts(value), "a string or a list of strings"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "multipleOf": (_is_positive, "a number above 0"),
    **dict.fromkeys(("minimum", "maximum"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _BOUND),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    "required": (_are_texts, "a list of strings"),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _SCHEMAS),
    "items": (lambda value: _is_schema(value) or _are_schemas(value), "a schema, or a list of schemas"),
    **dict.fromkeys(("additionalProperties", "additionalItems"), _SCHEMA),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _NAMED),
}


def check_keywords(root: dict[str, Any], param: str) -> None:
    """Raise InvalidParameterError for a keyword's value of a wrong type, and for numbers that JSON has not."""
    for path, schema in schemas_in(root):
        if not _is_schema(schema):
            raise _wrong(param, path, _SCHEMA[1])
        for key, value in schema.items() if isinstance(schema, dict) else ():
            is_right, wanted = _KEYWORDS.get(key, (None, ""))
            if is_right is not None and not is_right(value):
                raise _wrong(param, (*path, key), wanted)
    for path, number in _numbers_in(root):
        if not (-_LARGEST < number < _LARGEST) or not math.isfinite(number):
            raise _wrong(param, path, "a number that fits 64 bits' floating point")


def _wrong(param: str, path: tuple[str, ...], wanted: str) -> InvalidParameterError:
    place = ".".join([param, *path])
    place = place if len(place) <= _MOST_SHOWN else f"{place[: _MOST_SHOWN // 2]}...{place[-_MOST_SHOWN // 2 :]}"
    return InvalidParameterError(f"{place}: must be {wanted}", param=place, openai_code="invalid_type")


def _numbers_in(root: Any) -> Iterator[tuple[tuple[str, ...], int | float]]:
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending += [((*path, name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            pending += [((*path, str(place)), inner) for place, inner in enumerate(value)]
        elif _is_number(value):
            yield path, value
