"""Where the schemas within a JSON schema stand, and what their references lead to."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

Path = tuple[str, ...]

MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLES = ("items", "additionalProperties", "additionalItems")


def schemas_in(root: Any) -> Iterator[tuple[Path, Any]]:
    """Yield every schema by its path, the root first: those where schemas stand, and what references lead to."""
    pending: list[tuple[Path, Any]] = [((), root)]
    seen: set[Path] = set()
    while pending:
        path, schema = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path, schema
        if isinstance(schema, dict):
            pending += [((*path, *step), inner) for step, inner in children(schema)]
            pending += [(target, at(root, target)) for target in targets(root, schema)]


def children(schema: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the schemas directly within one, each by its path from there."""
    for key in MAPS:
        if isinstance(schema.get(key), dict):
            yield from (((key, name), inner) for name, inner in schema[key].items())
    for key in (*LISTS, "items"):
        if isinstance(schema.get(key), list):
            yield from (((key, str(place)), inner) for place, inner in enumerate(schema[key]))
    for key in SINGLES:
        if key in schema and not (key == "items" and isinstance(schema[key], list)):
            yield (key,), schema[key]


def targets(root: Any, schema: dict[str, Any]) -> list[Path]:
    """Return where a schema's reference leads within the root; nothing for one that leads nowhere, or elsewhere."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not (reference in {"", "#"} or reference.startswith("#/")):
        return []
    steps = unquote(reference).split("/")[1:]
    path = tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)
    try:
        at(root, path)
    except (LookupError, ValueError, TypeError):
        return []
    return [path]


def at(root: Any, path: Path) -> Any:
    """Return what stands at a path. Raises LookupError, ValueError or TypeError if nothing does."""
    value = root
    for step in path:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def as_pointer(path: Path) -> str:
    """Return a path as a reference has it."""
    return "/".join(["#", *(step.replace("~", "~0").replace("/", "~1") for step in path)])
