"""Connections over TLS before they are any: whoever does not finish the handshake takes a place like everybody else.

asyncio's own server tells of a connection when its handshake is done, for which it allows a minute. Until then nobody
would count it.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from services.gateway.http.crowding import Crowd, network_of

_RETRY_SECONDS = 1.0
"""Until the next connection is accepted, where there are no file descriptors or buffers left."""

logger = logging.getLogger(__name__)


class Handshake:
    """A connection whose handshake goes on."""

    def __init__(self, network: str, began: float, task: "asyncio.Task[None]") -> None:
        self.network = network
        self.phase_began = began
        self._task = task

    @property
    def is_worked_on(self) -> bool:
        """It asks for nothing yet."""
        return False

    def abort(self) -> None:
        """Close the connection."""
        self._task.cancel()


class Successor(Protocol):
    """The protocol of a connection, which takes the handshake's place when that is done."""

    handshake: Handshake | None


class TlsServer:
    """Listens, and has each connection begin once its client has shaken hands; what uvicorn needs of asyncio's server.

    Attributes:
        sockets: the one on which it listens.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        crowd: Crowd,
        handshake_seconds: float,
    ) -> None:
        """Begin to accept; `listening` is closed with the server. `make_protocol` makes a `Successor`."""
        self.sockets = (listening,)
        self._context = context
        self._make_protocol = make_protocol
        self._crowd = crowd
        self._handshake_seconds = handshake_seconds
        self._handshakes: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listening))

    def close(self) -> None:
        """Accept no more, and end the handshakes."""
        self._accepting.cancel()
        for task in self._handshakes:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for what `close` has ended."""
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    accepted, address = await loop.sock_accept(listening)
                except OSError as error:
                    logger.error("cannot accept connections", extra={"error": str(error)})
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                task = asyncio.create_task(self._shake_hands(accepted, network_of(address[0])))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)
                await asyncio.sleep(0)  # one in each round of the loop, however many wait

    async def _shake_hands(self, accepted: socket.socket, network: str) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        handshake = Handshake(network, loop.time(), task)

        def succeed() -> asyncio.Protocol:
            protocol = self._make_protocol()
            cast(Successor, protocol).handshake = handshake
            return protocol

        self._crowd.enter(handshake)
        try:
            await loop.connect_accepted_socket(
                succeed, accepted, ssl=self._context, ssl_handshake_timeout=self._handshake_seconds
            )
        except OSError as error:  # the client's doing, its time included
            logger.debug("no handshake", extra={"error": str(error)})
        finally:
            self._crowd.leave(handshake)
