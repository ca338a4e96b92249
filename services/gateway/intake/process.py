"""The gateway's side of the fork server: it starts it, hands it jobs, and starts it again if it is gone."""

import asyncio
import logging
import pickle
import socket
import subprocess
import sys
import threading
from typing import Any

from common.errors import StructKVError
from services.gateway.intake.channel import HEAD, LENGTH, Message, PortableError
from services.gateway.intake.work import Job, Result
from services.gateway.text_model import TextModel

_SERVER = "services.gateway.intake.fork_server"

logger = logging.getLogger(__name__)


class ProcessDiedError(StructKVError):
    """The process of a job has ended without an answer.

    Attributes:
        signum: the signal that ended it; None if the fork server is gone too.
    """

    def __init__(self, signum: int | None) -> None:
        super().__init__("the process that read the request has ended without an answer")
        self.signum = signum


class JobProcess:
    """A process with one job. Whoever has it closes it, which ends it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def do(self, job: Job, streams: "asyncio.Future[bool]") -> Result:
        """Return what becomes of the job; `streams` gets, before that, whether a stream is asked for.

        Raises the StructKVError that it comes to, and ProcessDiedError.
        """
        loop = asyncio.get_running_loop()
        try:
            data = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
            await loop.sock_sendall(self._connection, LENGTH.pack(len(data)))
            await loop.sock_sendall(self._connection, data)
            del data
            kind, length = HEAD.unpack(await self._read(HEAD.size))
            if kind == Message.PARSED:
                if not streams.done():  # whoever waited for it may have gone
                    streams.set_result(bool(length))
                kind, length = HEAD.unpack(await self._read(HEAD.size))
            if kind == Message.DIED:
                raise ProcessDiedError(length)
            content = pickle.loads(await self._read(length))  # noqa: S301  our own process wrote it
        except (OSError, EOFError):
            raise ProcessDiedError(None) from None
        return _result(kind, content)

    async def _read(self, length: int) -> bytearray:
        loop, data = asyncio.get_running_loop(), bytearray(length)
        view = memoryview(data)
        while view:
            received = await loop.sock_recv_into(self._connection, view)
            if not received:
                raise EOFError
            view = view[received:]
        return data

    def close(self) -> None:
        """End the process. May be called again."""
        self._connection.close()


def _result(kind: int, content: Any) -> Result:
    if kind == Message.ERROR:
        assert isinstance(content, PortableError)
        raise content.exception()
    if kind == Message.FAILED:
        raise StructKVError("the request could not be read")
    result: Result = content
    return result


class ForkServerProcess:
    """The fork server for one served model; a context manager that ends it."""

    def __init__(self, model: TextModel, log_level: str) -> None:
        self._model = model
        self._log_level = log_level
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the server if it does not run, and wait until it has the model: for threads that may wait a second."""
        with self._starting:
            if not self._runs:
                self._start()

    @property
    def _runs(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def _start(self) -> None:
        if self._server is not None:
            logger.error("the intake's server has ended and is started again", extra={"status": self._server.poll()})
            self.stop()
        self._control, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", _SERVER, str(number)]
            self._server = subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)  # noqa: S603
        data = pickle.dumps((self._log_level, self._model))
        self._control.sendall(LENGTH.pack(len(data)) + data)

    async def open(self) -> JobProcess:
        """Return a process for a job. Raises ProcessDiedError if the server cannot be started."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            if self._starting.locked() or not self._runs:
                await asyncio.to_thread(self.start)
            assert self._control is not None
            socket.send_fds(self._control, [b"j"], [theirs.fileno()])
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            logger.exception("the intake's server takes no job")
            raise ProcessDiedError(None) from None
        finally:
            theirs.close()
        return JobProcess(ours)

    def stop(self) -> None:
        """End the server and all its processes. May be called again."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.wait()
            self._server = None
