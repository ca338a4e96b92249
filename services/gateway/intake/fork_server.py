"""The intake's own process: it has the text side in memory, and forks a process for each job.

So a job costs a few milliseconds and little memory to begin, can be ended at any moment, and leaves nothing behind.
The gateway itself cannot fork: it has threads. Here is one, and nothing but this loop.
"""

import gc
import logging
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from common import garbage
from common.errors import InvalidRequestError, StructKVError
from common.logging import configure, logged_as
from services.gateway.intake.channel import HEAD, LENGTH, Message, PortableError, framed
from services.gateway.intake.limits import limit, step_back
from services.gateway.intake.work import Job, do
from services.gateway.long_texts import max_text_characters
from services.gateway.text_model import TextModel

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Child:
    """A job's process and its socket."""

    pid: int
    connection: socket.socket
    ended: bool = False

    def note_end(self) -> None:
        """Tell the gateway of an end without an answer."""
        if self.ended or (end := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)) is None:
            return
        self.ended = True
        if end.si_code != os.CLD_EXITED:
            self.connection.setblocking(False)
            try:
                self.connection.send(HEAD.pack(Message.DIED, end.si_status))
            except OSError:
                logger.info("nobody waits for a job that has died")

    def end(self) -> None:
        """Kill the process if it still runs, and forget it."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.connection.close()


class ForkServer:
    """Takes sockets from the gateway, each for a job, until the gateway is gone."""

    def __init__(self, control: socket.socket, model: TextModel) -> None:
        self._control = control
        self._model = model
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._ends, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._ends, select.POLLIN)

    def serve(self) -> None:
        """Serve until the gateway closes its end; what still runs is ended with it."""
        serving = True
        while serving:
            for number, _ in self._poll.poll():
                if number == self._ends:
                    os.read(self._ends, 4096)
                    for child in self._children.values():
                        child.note_end()
                elif number == self._control.fileno():
                    serving = self._take()
                else:
                    self._poll.unregister(number)
                    self._children.pop(number).end()
        for child in self._children.values():
            child.end()

    def _take(self) -> bool:
        """Fork a process for a socket; tell whether the gateway is still there."""
        data, numbers, _, _ = socket.recv_fds(self._control, 1, 1)
        for number in numbers:
            connection = socket.socket(fileno=number)
            pid = os.fork()
            if pid == 0:
                self._run(connection)
            self._children[number] = _Child(pid, connection)
            self._poll.register(number, 0)  # which still tells that the other end is closed
        return bool(data)

    def _run(self, connection: socket.socket) -> None:
        """Do a job, in its own process, and end."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for child in self._children.values():
                child.connection.close()
            step_back()
            _answer(connection, self._model)
        except OSError:
            logger.info("the gateway no longer waits for a job")
        finally:
            os._exit(0)


def _answer(connection: socket.socket, model: TextModel) -> None:
    with connection.makefile("rb") as incoming:
        (length,) = LENGTH.unpack(incoming.read(LENGTH.size))
        limit(length, max_text_characters(model.context_tokens))
        job: Job = pickle.loads(incoming.read(length))  # noqa: S301  the gateway wrote it
    for part in _outcome(job, model, lambda streams: connection.sendall(HEAD.pack(Message.PARSED, streams))):
        connection.sendall(part)


def _outcome(job: Job, model: TextModel, on_parsed: Callable[[bool], None]) -> list[bytes]:
    with logged_as(job.request_id):
        try:
            return framed(Message.RESULT, do(job, model, on_parsed))
        except StructKVError as error:
            return framed(Message.ERROR, PortableError.of(error))
        except MemoryError:
            too_large = InvalidRequestError("the request takes too much memory to be read")
            return framed(Message.ERROR, PortableError.of(too_large))
        except Exception:
            logger.exception("a request could not be read")
            return framed(Message.FAILED, None)


def main() -> None:
    """Serve the gateway that holds the other end of the socket with the given number."""
    # The gateway decides when this ends: it drains first. Ctrl-C reaches the whole group of processes.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    (length,) = LENGTH.unpack(control.recv(LENGTH.size, socket.MSG_WAITALL))
    log_level, model = pickle.loads(control.recv(length, socket.MSG_WAITALL))  # noqa: S301
    configure("gateway", log_level, exception_messages=False)
    garbage.freeze()
    gc.disable()  # the processes are short, and looking for cycles in a large body takes longer than reading it
    ForkServer(control, model).serve()


if __name__ == "__main__":
    main()
