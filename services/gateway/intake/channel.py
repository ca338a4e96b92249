"""What the gateway and the processes of its intake say to one another, over a socket for each job.

    gateway                  process
       │  ─── job ─────────────▶  │
       │  ◀────────── PARSED ───  │
       │  ◀── what came of it ──  │    or, from the server, that it has DIED

Closing the socket ends the process, whatever it is doing.
"""

import pickle
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

LENGTH = struct.Struct("!Q")
HEAD = struct.Struct("!BQ")
"""A message's kind and its length in bytes; for DIED the signal's number, for PARSED 1 if a stream is asked for."""


class Message(IntEnum):
    """What a process answers."""

    RESULT = 0
    ERROR = 1
    FAILED = 2
    DIED = 3
    PARSED = 4


@dataclass(frozen=True, slots=True)
class PortableError:
    """An exception that crosses to another process: pickle would call its class with too few arguments."""

    kind: type[Exception]
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: Exception) -> "PortableError":
        """Take an exception apart."""
        return cls(type(error), error.args, vars(error))

    def exception(self) -> Exception:
        """Return the exception as it was."""
        error = self.kind.__new__(self.kind, *self.arguments)
        vars(error).update(self.attributes)
        return error


def framed(kind: Message, content: object) -> list[bytes]:
    """Return an answer's head and its bytes."""
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    return [HEAD.pack(kind, len(data)), data]
