"""Calls of tools in an answer, as pieces and as a whole."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: its beginning with identity and name, or more of the arguments' JSON."""

    index: int
    arguments: str
    name: str | None = None
    identity: str | None = None


def begun_call(index: int, name: str, arguments: str) -> ToolCallDelta:
    """Return a call's first piece, with a new identity."""
    return ToolCallDelta(index, arguments, name, f"call_{uuid.uuid4().hex[:24]}")


def joined(deltas: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """Return each call whole."""
    calls: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        begun = calls.setdefault(delta.index, ToolCallDelta(delta.index, "", delta.name, delta.identity))
        whole = ToolCallDelta(begun.index, begun.arguments + delta.arguments, begun.name, begun.identity)
        calls[delta.index] = whole
    return list(calls.values())
