"""Requests that wait for KV memory."""

import asyncio
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from common.token_bound import TokenBound
from services.decode.pool import SequenceKV


@dataclass(eq=False, frozen=True, slots=True)
class Waiting:
    """A request that waits: what it needs, and where its tables go.

    Attributes:
        tokens: slots to set aside for each of its answers, by layer.
        prompt_tokens: what it counts for in the queue.
        priority: lower goes first.
        granted: the tables, once there is room.
    """

    tokens: list[list[int]]
    prompt_tokens: int
    priority: int
    granted: asyncio.Future[list[SequenceKV]]


class WaitingQueue:
    """The most urgent first, among equals in order of arrival; bounded in prompt tokens."""

    def __init__(self, max_tokens: int) -> None:
        self._bound = TokenBound("max_waiting_tokens", max_tokens)
        self._entries: list[Waiting] = []

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> Waiting | None:
        """The request whose turn is next."""
        return self._entries[0] if self._entries else None

    def push(self, waiting: Waiting) -> None:
        """Put a request behind those that are as urgent; raise OverloadedError if the queue is full."""
        self._bound.enter(waiting.prompt_tokens)
        insort(self._entries, waiting, key=lambda entry: entry.priority)

    def remove(self, waiting: Waiting) -> None:
        """Take a request out: it has its memory, or gave up."""
        self._entries.remove(waiting)
        self._bound.leave(waiting.prompt_tokens)
