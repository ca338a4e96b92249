"""Which parts of a JSON schema have a finite answer. An object that requires itself has none.

A part is what one value has to follow: schemas at several paths where `allOf` or a reference combines them. What is not
looked at here, such as numbers' bounds, counts as if it could be followed: llguidance knows better.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from common.errors import InvalidRequestError
from services.gateway.requests.json_paths import Path, as_pointer, at, children, schemas_in, targets
from services.gateway.requests.productive import Needs

Part = tuple[frozenset[Path], tuple[Path, ...]]
"""The schemas that a value follows, and the alternatives among which one is still to be chosen, by their paths."""

Schema = tuple[Path, dict[str, Any]]

_MOST_WORK = 600_000
"""In schemas looked at: alternatives that are combined are a product. llguidance itself gives up at a thousand."""

_SCALARS = {"string", "number", "integer", "boolean", "null"}
_TYPES = _SCALARS | {"object", "array"}


def without_endless(root: dict[str, Any], param: str) -> dict[str, Any]:
    """Return a schema without what no finite value follows, in which a model would not find an end.

    Raises InvalidRequestError, naming what is at fault, if nothing is left.
    """
    if not _has_circles(root):
        return root
    finiteness = _Finiteness(root, param)
    finiteness.check()
    endless = finiteness.endless
    if not endless:
        return root
    left: dict[str, Any] = json.loads(json.dumps(root))
    for path in sorted(endless, key=len):
        try:
            holder = at(left, path[:-1])
            holder[int(path[-1]) if isinstance(holder, list) else path[-1]] = False
        except TypeError:  # it is within one that is gone
            continue
    return left


def _has_circles(root: dict[str, Any]) -> bool:
    needs, schemas = Needs[Path](), dict(schemas_in(root))
    for path, schema in schemas.items():
        if isinstance(schema, dict):
            needs.add(path, [*((*path, *step) for step, _ in children(schema)), *targets(root, schema)])
        else:
            needs.add(path, ())
    return len(needs.completed()) < len(schemas)


class _Finiteness:
    """The parts of one schema, whose keywords must have values of the right types."""

    def __init__(self, root: dict[str, Any], param: str) -> None:
        """Raises InvalidRequestError for a schema that combines too much to be looked through."""
        self._param = param
        self._schemas = dict(schemas_in(root))
        self._combined = {path: _combined_with(root, path, schema) for path, schema in self._schemas.items()}
        self._grounded = self._not_in_circles()
        self._needs = Needs[Part]()
        self._known: dict[Part, None] = {}
        self._pending: list[Part] = []
        self._work = 0
        self._alone = {path: self._part([path]) for path in self._schemas}
        while self._pending:
            self._add_ways(self._pending.pop())
        self._done = self._needs.completed()

    @property
    def endless(self) -> set[Path]:
        """The paths of the schemas that no finite value follows."""
        return {path for path, part in self._alone.items() if part not in self._done}

    def check(self) -> None:
        """Raise InvalidRequestError, naming what is at fault, if no finite value follows the whole."""
        whole = self._alone[()]
        if whole in self._done:
            return
        path = self._needs.obstacle(whole, self._done)
        paths = sorted(path[-1][0], key=len)
        if path.index(path[-1]) < len(path) - 1:
            at = f", at {as_pointer(paths[-1])}" if len(paths) > 1 else ""
            reason = f"{as_pointer(paths[0])} requires itself{at}"
        else:
            reason = f"{as_pointer(paths[-1])} is required, and no value follows it"
        raise InvalidRequestError(f"{self._param}: no finite answer follows the schema: {reason}", param=self._param)

    def _not_in_circles(self) -> set[Path]:
        """Return the schemas that say more than to follow themselves."""
        needs = Needs[Path]()
        for path, combined in self._combined.items():
            needs.add(path, combined)
        return needs.completed()

    def _closure(self, paths: Iterable[Path], settled: Collection[Path] = ()) -> list[Path]:
        taken, pending = dict.fromkeys(settled), list(paths)
        while pending:
            path = pending.pop()
            if path not in taken:
                taken[path] = None
                pending += self._combined[path]
        return list(taken)[len(settled) :]

    def _part(self, paths: Iterable[Path], settled: Sequence[Path] = (), choices: Sequence[Path] = ()) -> Part:
        """Return the part that follows all these schemas, beside those whose choices are known."""
        new = self._closure(paths, settled)
        self._spend(len(settled) + len(new) + len(choices))
        opened = [
            (*path, key)
            for path in new
            if isinstance(schema := self._schemas[path], dict)
            for key in ("anyOf", "oneOf")
            if key in schema
        ]
        part = frozenset([*settled, *new]), (*choices, *opened)
        if part not in self._known:
            self._known[part] = None
            self._pending.append(part)
        return part

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > _MOST_WORK:
            reason = "the schema combines too many alternatives, or refers too often"
            raise InvalidRequestError(f"{self._param}: {reason}", param=self._param)

    def _add_ways(self, part: Part) -> None:
        paths, choices = part
        if any(self._schemas[path] is False for path in paths) or not paths <= self._grounded:
            return
        if choices:
            self._add_choices(part)
        else:
            self._add_by_type(
                part, [(path, schema) for path in paths if isinstance(schema := self._schemas[path], dict)]
            )

    def _add_choices(self, part: Part) -> None:
        paths, (choice, *choices) = part
        owner, key = choice[:-1], choice[-1]
        for place in range(len(self._schemas[owner][key])):
            branch = (*choice, str(place))
            if owner not in self._closure([branch]):  # to follow oneself is no way to be followed
                self._needs.add(part, [self._part([branch], tuple(paths), choices)])

    def _add_by_type(self, part: Part, schemas: Sequence[Schema]) -> None:
        types = set(_TYPES)
        for _, schema in schemas:
            if "type" in schema:
                types &= {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
        if types & _SCALARS or not types or any("enum" in schema or "const" in schema for _, schema in schemas):
            self._needs.add(part, ())
            return
        if "array" in types:
            self._needs.add(part, self._items(schemas))
        if "object" in types:
            self._add_object(part, schemas)

    def _items(self, schemas: Sequence[Schema]) -> list[Part]:
        """Return the parts of the items that a list must have; those that are alike once."""
        number = max((schema.get("minItems", 0) for _, schema in schemas), default=0)
        listed = max((len(_listed(schema)[1]) for _, schema in schemas), default=0)
        return [
            self._part(path for schema in schemas for path in _item(*schema, place))
            for place in range(min(int(number), listed + 1))
        ]

    def _add_object(self, part: Part, schemas: Sequence[Schema]) -> None:
        required = {name for _, schema in schemas for name in schema.get("required", ())}
        needed = [self._property(name, schemas) for name in required]
        others = int(max((schema.get("minProperties", 0) for _, schema in schemas), default=0)) - len(required)
        if others > 0:
            names = {name for _, schema in schemas for name in schema.get("properties", {})} - required
            optional: Part = part[0], (*part[1], ("minProperties",))
            self._needs.add(optional, [self._property(name, schemas) for name in names], at_least=others)
            self._needs.add(optional, [self._property(None, schemas)])
            needed.append(optional)
        self._needs.add(part, needed)

    def _property(self, name: str | None, schemas: Sequence[Schema]) -> Part:
        """Return the part that a property's value is; without a name, of one that no schema names."""
        self._spend(len(schemas))
        return self._part(path for schema in schemas for path in _of_property(name, *schema))


def _combined_with(root: dict[str, Any], path: Path, schema: Any) -> list[Path]:
    """Return the schemas that a value has to follow as well."""
    if not isinstance(schema, dict):
        return []
    return [*((*path, "allOf", str(place)) for place in range(len(schema.get("allOf", ())))), *targets(root, schema)]


def _listed(schema: dict[str, Any]) -> tuple[str, list[Any]]:
    """Return the items that have schemas of their own, and under which key."""
    if isinstance(schema.get("items"), list):  # as older drafts have it
        return "items", schema["items"]
    return "prefixItems", schema.get("prefixItems", [])


def _item(path: Path, schema: dict[str, Any], place: int) -> Iterator[Path]:
    key, listed = _listed(schema)
    rest = "additionalItems" if key == "items" else "items"
    if place < len(listed):
        yield (*path, key, str(place))
    elif rest in schema:
        yield (*path, rest)


def _of_property(name: str | None, path: Path, schema: dict[str, Any]) -> Iterator[Path]:
    if name is not None and name in schema.get("properties", {}):
        yield (*path, "properties", name)
    elif "additionalProperties" in schema and not schema.get("patternProperties"):
        yield (*path, "additionalProperties")
