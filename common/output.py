"""Standard error as a service may use it: nothing that happens to it ends the process, or holds it up.

Whoever reads our output may be gone, may have stopped reading, and a disk may be full. So lines go through a thread of
their own. What cannot be written is dropped; how much that was is said as soon as it can be.
"""

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

_MAX_WAITING_BYTES = 4 << 20
_FLUSH_SECONDS = 1.0
"""At the end of the process: who does not read by then has had their time."""
_STDERR = 2


class Output(io.TextIOBase):
    """A text stream on a file descriptor, whose methods neither wait nor fail. Its thread starts with the first line.

    Attributes:
        on_dropped: makes the line that says how many could not be written.
    """

    def __init__(self, descriptor: int = _STDERR) -> None:
        super().__init__()
        self.on_dropped: Callable[[int], str] = "structkv: {} lines could not be written".format
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._num_dropped = 0
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._forked = False
        os.register_at_fork(after_in_child=self._after_fork)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # io has it as an attribute
        """What text becomes bytes by."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Have text written soon, or drop it if too much waits already."""
        data = text.encode("utf-8", "backslashreplace")
        if self._forked:
            self._write_at_once(data)
            return len(text)
        with self._changed:
            if self._waiting_bytes + len(data) > _MAX_WAITING_BYTES:
                self._num_dropped += 1
            else:
                self._append(data)
            if self._writer is None:
                self._start()
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until all is written, or the time is over. `flush` does not wait: it is called for every line."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    def _start(self) -> None:
        self._writer = threading.Thread(target=self._write_all, name="output", daemon=True)
        self._writer.start()

    def _after_fork(self) -> None:
        """Do without a thread in a child: it may end at any moment. The lines that wait are its parent's."""
        self._forked = True
        self._waiting.clear()
        self._changed = threading.Condition()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                data = self._waiting[0]
            written = self._write(data)
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)
                if not written:
                    self._num_dropped += 1
                elif self._num_dropped and not self._waiting:
                    self._append(f"{self.on_dropped(self._num_dropped)}\n".encode())
                    self._num_dropped = 0
                self._changed.notify_all()

    def _write_at_once(self, data: bytes) -> None:
        """Write what can be written within a moment, in pieces that a pipe takes whole or not at all."""
        for start in range(0, len(data), select.PIPE_BUF):
            try:
                if not select.select([], [self._descriptor], [], _FLUSH_SECONDS)[1]:
                    return
                os.write(self._descriptor, data[start : start + select.PIPE_BUF])
            except OSError:
                return

    def _write(self, data: bytes) -> bool:
        """Write all of it, however long that takes; tell whether it went out."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # others share the open file, and may have made it so
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


def protect_descriptors() -> None:
    """Put nothing in place of standard streams that are closed: the next file or socket would take their number."""
    for descriptor in range(_STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def take_over_stderr() -> Output:
    """Have all that Python writes to standard error go through an output; return it."""
    if isinstance(sys.stderr, Output):
        return sys.stderr
    output = Output()
    sys.stderr = output
    atexit.register(output.drain)
    return output
