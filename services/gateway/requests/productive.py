"""What can be completed: the least fixed point over parts that need one another, in linear time."""

from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

PartT = TypeVar("PartT", bound=Hashable)


class Needs(Generic[PartT]):
    """Parts, such as rules of a grammar, each with the ways in which it can be completed."""

    def __init__(self) -> None:
        self._missing: list[int] = []  # of each way: how many of what it needs are still to be completed
        self._owners: list[PartT] = []
        self._needed_by = defaultdict[PartT, list[int]](list)
        self._ways = defaultdict[PartT, list[tuple[PartT, ...]]](list)

    def add(self, part: PartT, needed: Collection[PartT], at_least: int | None = None) -> None:
        """Say that a part can be completed once all that are needed can, or at least so many of them."""
        distinct = tuple(dict.fromkeys(needed))
        way = len(self._owners)
        self._owners.append(part)
        self._missing.append(len(distinct) if at_least is None else at_least)
        self._ways[part].append(distinct)
        for other in distinct:
            self._needed_by[other].append(way)

    def completed(self) -> set[PartT]:
        """Return the parts that can be completed."""
        missing = list(self._missing)
        done: set[PartT] = set()
        pending = deque(owner for owner, number in zip(self._owners, missing, strict=True) if number <= 0)
        while pending:
            part = pending.popleft()
            if part in done:
                continue
            done.add(part)
            for way in self._needed_by[part]:
                missing[way] -= 1
                if missing[way] == 0:
                    pending.append(self._owners[way])
        return done

    def obstacle(self, part: PartT, done: Collection[PartT]) -> list[PartT]:
        """Return what keeps a part from being completed: a way to a part that is on it already, or that has no way."""
        path, seen = [part], {part}
        while (following := next(self._obstacles(path[-1], done), None)) is not None:
            path.append(following)
            if following in seen:
                break
            seen.add(following)
        return path

    def _obstacles(self, part: PartT, done: Collection[PartT]) -> Iterator[PartT]:
        for way in self._ways[part]:
            yield from (other for other in way if other not in done)
