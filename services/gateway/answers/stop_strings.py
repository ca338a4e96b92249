"""Finds stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, and holds back what could be the beginning of one.

    The first is the one that is complete first, and of those complete at the same character the longest: so
    the result is the same however the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        """Take the strings, and whether the one that is found is part of the text."""
        self._stops = tuple(stops)
        self._included = included
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Take a piece; return the text that is free to go, and the stop string found behind it.

        A stop string that is complete in a piece that may not stop is text like any other.
        """
        buffer = self._held + text
        found = self._first(buffer) if may_stop else None
        if found is not None:
            end, start, stop = found
            self._held = ""
            return buffer[: end if self._included else start], stop
        keep = self._held_length(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None

    def flush(self) -> str:
        """Return what is held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _first(self, buffer: str) -> tuple[int, int, str] | None:
        """Return end, start and words of the first stop string that ends in the new piece."""
        known = len(self._held)
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := buffer.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        return min(found, default=None)

    def _held_length(self, buffer: str) -> int:
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            if any(stop.startswith(buffer[-length:]) for stop in self._stops):
                return length
        return 0
