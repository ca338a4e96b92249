"""A client that has sent its end (FIN): it waits for its answer with one side closed, or it has left.

Both look the same until something is sent: who has left answers with a reset, who waits acknowledges. What can be sent
before the answer is known are its first bytes, which are the same for every answer.
"""

import asyncio
import socket
from collections.abc import Callable

_FIRST_WAIT_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 60.0


class Probe:
    """Sends a byte that is due anyway now and then, and ends the connection of a client that has left."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, next_byte: Callable[[], bytes]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._next_byte = next_byte
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Send the first byte."""
        if byte := self._next_byte():
            self._transport.write(byte)
        self._timer = self._loop.call_later(self._wait_seconds, self._check)
        self._wait_seconds = min(2 * self._wait_seconds, _LONGEST_WAIT_SECONDS)

    def stop(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        # With the end of the stream the loop has stopped to look at the socket, and would not see a reset.
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        elif not self._transport.is_closing():
            self.start()
