"""What one connection may ask for faster than the loop gets through it is done in turns, a little at a time.

The loop itself knows no turns: a thousand connections with a thousand requests each in their buffers would have it do a
thousand things before it looks at anybody else.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable

from uvicorn.protocols.http.flow_control import FlowControl

_PAUSE_SECONDS = 0.005
"""Between two turns, each of which takes about a millisecond: together they get a fifth of the loop."""
_WITHOUT_TURN = 32
"""New connections of a line that go on at once in a second. Who opens them faster than the loop gets through their
requests, and leaves, would have everybody else's wait behind requests that nobody wants any more."""


class Turns:
    """Those that wait for one, of all connections. Lines have equal shares, and so have the waiters of one."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Hashable, Callable[[], None]]] = {}  # whose turn is next comes first
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._begun: Counter[str] = Counter()
        self._second = 0

    def needed(self, line: str) -> bool:
        """Tell whether a line's new connection has to wait for a turn, as so many of its others have not."""
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._begun.clear()
            self._second = second
        self._begun[line] += 1
        return self._begun[line] > _WITHOUT_TURN

    def wait(self, line: str, who: Hashable, action: Callable[[], None]) -> None:
        """Call `action` in turn; one waits for one turn at a time."""
        self._waiting.setdefault(line, {}).setdefault(who, action)
        self._set_timer()

    def leave(self, line: str, who: Hashable) -> None:
        """Wait no more."""
        if waiters := self._waiting.get(line):
            waiters.pop(who, None)
            if not waiters:
                del self._waiting[line]

    def _set_timer(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_at(self._next_at, self._give)

    def _give(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        self._next_at = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        line = next(iter(self._waiting))
        waiters = self._waiting.pop(line)
        action = waiters.pop(next(iter(waiters)))
        if waiters:
            self._waiting[line] = waiters
        self._set_timer()
        action()


class HeldFlow(FlowControl):
    """uvicorn's, of a connection of which nothing is read while it waits for its turn, whoever asks for more.

    Attributes:
        is_held: whether it waits.
        is_ahead: whether its next request has come before the answer to this one is given; nothing is read then either.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.is_held = self.is_ahead = False

    def hold(self) -> None:
        """Read nothing more."""
        self.is_held = self.read_paused = True
        self._transport.pause_reading()  # uvicorn also resumes the transport without this one's knowledge

    def resume_reading(self) -> None:
        """Read on, unless the turn is yet to come."""
        if not (self.is_held or self.is_ahead):
            super().resume_reading()
