"""The requests that wait for memory, thousands perhaps, of which a step looks at the next few only."""

from collections.abc import Iterator
from itertools import chain, islice

from services.decode.group import Group


class Queue:
    """Requests by client and priority, of each in the order in which they came."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], dict[Group, None]] = {}
        self._size = 0

    def add(self, group: Group) -> None:
        """Take a request in, behind those that came before it."""
        self._lines.setdefault(_line(group), {})[group] = None
        self._size += 1

    def remove(self, group: Group) -> None:
        """Take a request out; it waits here."""
        line = self._lines[_line(group)]
        del line[group]
        self._size -= 1
        if not line:
            del self._lines[_line(group)]

    def next(self, most: int) -> list[Group]:
        """Return the first ones of each client and priority, so many of each: whoever has its turn is among them."""
        return [group for line in self._lines.values() for group in islice(line, most)]

    def __contains__(self, group: Group) -> bool:
        return group in self._lines.get(_line(group), ())

    def __iter__(self) -> Iterator[Group]:
        return chain.from_iterable(self._lines.values())

    def __len__(self) -> int:
        return self._size


def _line(group: Group) -> tuple[int, int]:
    return group.client, group.priority
