"""Reads one call's JSON object as it comes."""

import json
import re
from collections.abc import Collection
from typing import Any

_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""The beginning as models are trained to write it: behind it, the arguments can go out as they come."""


class ObjectEnd:
    """Finds where a JSON object ends that is read from its brace on."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Take more text; return the length up to behind the closing brace if it is in there."""
        for place, char in enumerate(text):
            if self._in_string:
                self._read_string(char)
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return None

    def _read_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False


class CallReader:
    """A call on its way.

    Attributes:
        raw: the object's text so far.
        name: the function's, once it is known and the call is one.
        is_complete: whether the object has ended.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        """Begin before the object's brace; with `names`, an object is a call only if it names one of these."""
        self.raw = ""
        self.name: str | None = None
        self.is_complete = False
        self._names = names
        self._end = ObjectEnd()
        self._arguments_end: ObjectEnd | None = None
        self._behind_arguments = 0

    @property
    def has_arguments(self) -> bool:
        """Whether the call is whole, if perhaps not its object."""
        return self.name is not None and self._arguments_end is None

    def push(self, text: str) -> tuple[str, str]:
        """Take text; return what is new of the arguments, and what is behind the object."""
        end = self._end.find(text)
        text, rest = (text, "") if end is None else (text[:end], text[end:])
        self.is_complete = end is not None
        self.raw += text
        arguments = self._begin() if self.name is None else self._more(text)
        return arguments, self._forgotten_brace() + rest

    def _begin(self) -> str:
        """Return the first of the arguments if the name is known now."""
        head = _HEAD.match(self.raw)
        if head is not None and self._is_callable(head[1]):
            self.name, self._arguments_end = head[1], ObjectEnd()
            return self._more(self.raw[head.end() :])
        return self._read_whole() if self.is_complete else ""

    def _more(self, text: str) -> str:
        if self._arguments_end is None:
            return ""
        end = self._arguments_end.find(text)
        if end is None:
            return text
        self._arguments_end = None
        self._behind_arguments = len(self.raw) - len(text) + end
        return text[:end]

    def _forgotten_brace(self) -> str:
        """End an object whose last brace the model has left out; return what is there instead."""
        behind = self.raw[self._behind_arguments :].lstrip() if self._behind_arguments else ""
        if not behind or behind[0] in ",}":
            return ""
        self.is_complete = True
        return behind

    def _read_whole(self) -> str:
        """Read an object that is written in another order or form; return its arguments if it is a call."""
        try:
            found = json.loads(self.raw)
        except (ValueError, RecursionError):
            return ""
        name = found.get("name") if isinstance(found, dict) else None
        if not isinstance(name, str) or not self._is_callable(name):
            return ""
        self.name = _encodable(name)
        return _written(found.get("arguments", found.get("parameters", {})))

    def _is_callable(self, name: str) -> bool:
        return self._names is None or name in self._names


def _written(arguments: Any) -> str:
    """Return arguments as JSON; some models write that JSON as a string."""
    return _encodable(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _encodable(text: str) -> str:
    """Escape halves of surrogate pairs as JSON does: a model may write one so, and it cannot be sent as it is."""
    return text.encode(errors="backslashreplace").decode()
