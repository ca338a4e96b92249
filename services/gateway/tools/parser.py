"""Tells content and calls of tools apart, in text that comes in pieces."""

from collections.abc import Collection
from enum import Enum, auto

from services.gateway.tools.call_reader import CallReader
from services.gateway.tools.calls import ToolCallDelta, begun_call
from services.gateway.tools.formats import ToolFormat


class _Place(Enum):
    START = auto()  # nothing but white space so far
    CONTENT = auto()
    CALLS = auto()  # behind a marker, before or after an object
    CALL = auto()  # in an object
    OVER = auto()  # no more calls are wanted


class ToolCallParser:
    """Lets content through, and takes calls out of it. The result does not depend on how the text is cut.

    Markers are never content, nor is white space between calls. What stands in a call's place and is none is content.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, parallel: bool) -> None:
        """Expect calls in a form, of functions with these names; only the first one unless `parallel`."""
        self._form = form
        # Without a marker only the name tells a call from an answer that is JSON.
        self._names = None if form.begin else frozenset(names)
        self._parallel = parallel
        self._place = _Place.START
        self._held = ""
        self._reader = CallReader(self._names)
        self._content = ""
        self._deltas: list[ToolCallDelta] = []
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Take a piece; return the content and the pieces of calls that are certain now."""
        self._held += text
        while self._step():
            pass
        return self._taken()

    def flush(self) -> tuple[str, list[ToolCallDelta]]:
        """Return what is left at the answer's end."""
        if self._place is _Place.CALL and self._reader.name is None:
            self._content += self._reader.raw
        elif self._place in {_Place.START, _Place.CONTENT} and not (self.num_calls and self._held.isspace()):
            self._content += self._held
        self._held = ""
        return self._taken()

    def _taken(self) -> tuple[str, list[ToolCallDelta]]:
        content, deltas = self._content, self._deltas
        self._content, self._deltas = "", []
        return content, deltas

    def _step(self) -> bool:
        """Go on by what is held; tell whether there may be more to do."""
        match self._place:
            case _Place.START if not self._form.begin:
                return self._start_without_marker()
            case _Place.START | _Place.CONTENT:
                return self._read_content()
            case _Place.CALLS:
                return self._between_calls()
            case _Place.CALL:
                return self._read_call()
        self._held = ""
        return False

    def _start_without_marker(self) -> bool:
        text, ignored = self._held.lstrip(), self._form.ignored
        if text.startswith(("{", ignored)):
            self._place = _Place.CALLS
        elif ignored.startswith(text):
            return False
        else:
            self._place = _Place.CONTENT
        return True

    def _read_content(self) -> bool:
        found = [(place, marker) for marker in self._form.markers if (place := self._held.find(marker)) >= 0]
        if found:
            place, marker = min(found)
            self._content += self._held[:place].rstrip()
            self._held = self._held[place + len(marker) :]
            self._place = _Place.CALLS if marker == self._form.begin else _Place.CONTENT
            return True
        begun = max((_begun_length(self._held, marker) for marker in self._form.markers), default=0)
        free = len(self._held[: len(self._held) - begun].rstrip())
        self._content += self._held[:free]
        self._held = self._held[free:]
        return False

    def _between_calls(self) -> bool:
        self._held = self._held.lstrip(self._form.filler)
        end, ignored = self._form.end, self._form.ignored
        for marker in filter(None, (end, ignored)):
            if self._held.startswith(marker):
                self._held = self._held.removeprefix(marker)
                self._place = _Place.CONTENT if marker == end else _Place.CALLS
                return True
        if not self._held or (end or ignored).startswith(self._held):
            return False
        self._place = _Place.CALL if self._held.startswith("{") else _Place.CONTENT
        self._reader = CallReader(self._names)
        return True

    def _read_call(self) -> bool:
        reader, was_known = self._reader, self._reader.name is not None
        arguments, self._held = reader.push(self._held)
        if reader.name is not None and not was_known:
            self._deltas.append(begun_call(self.num_calls, reader.name, arguments))
        elif arguments:
            self._deltas.append(ToolCallDelta(self.num_calls, arguments))
        if not reader.is_complete:
            return False
        if reader.name is None:
            self._content += reader.raw
            self._place = _Place.CALLS if self._form.begin else _Place.CONTENT
        else:
            self.num_calls += 1
            self._place = _Place.CALLS if self._parallel else _Place.OVER
        return True


def _begun_length(text: str, marker: str) -> int:
    """Return how much of the text's end could be the beginning of a marker."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if marker.startswith(text[-length:])), 0)
