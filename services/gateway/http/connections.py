"""The HTTP server under the app, and its bounds on connections: how many, how large a head, how long they may take."""

import asyncio
import logging
import resource
import socket
import ssl
import sys
from typing import Literal

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from services.gateway.http.crowding import Crowd
from services.gateway.http.handshakes import TlsServer
from services.gateway.http.lines import Lines
from services.gateway.http.protocol import BoundedProtocol, ConnectionLimits
from services.gateway.http.turns import Turns
from services.gateway.settings import GatewaySettings

MAX_HEAD_BYTES = 16 * 1024
"""A request line and headers that are longer are refused."""

_CLOSE_SECONDS = 1
"""For connections to close once no request is under way, or the grace time is over."""
_ACCEPTED_AT_ONCE = 4
"""Connections that asyncio takes in a round of its loop. A token needs several rounds on its way to a client, each of
which reads, and mostly refuses, what was accepted before it: with 64, a wave of connections is half a second's gap."""
_BACKLOG = 4096
"""Connections that the kernel holds until they are accepted. Whoever finds no room there tries again after a second."""
_OTHER_OPEN_FILES = 256

logger = logging.getLogger(__name__)


class ServerConfig(uvicorn.Config):
    """How uvicorn serves the app.

    Its other parser, httptools, is quicker but takes headers of any size.
    """

    def __init__(self, app: FastAPI, settings: GatewaySettings, lifespan: Literal["on", "off"] = "on") -> None:
        super().__init__(
            app,
            host=settings.host,
            port=settings.port,
            http=BoundedProtocol,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
            backlog=_ACCEPTED_AT_ONCE,
            proxy_headers=False,  # whoever is on this machine could say to be anybody
            ssl_certfile=settings.http_tls_cert,
            ssl_keyfile=settings.http_tls_key,
            log_config=None,
            access_log=False,
            lifespan=lifespan,
            ws="none",
        )
        self.limits = ConnectionLimits(
            max_head_bytes=MAX_HEAD_BYTES,
            header_seconds=settings.header_timeout_seconds,
            send_seconds=settings.send_timeout_seconds,
        )
        self.turns = Turns()
        self.lines = Lines(settings.all_api_keys)
        self.crowd = Crowd(settings.max_connections)

    def load(self) -> None:
        """Prepare what the server needs."""
        super().load()
        if self.ssl is not None:
            self.ssl.minimum_version = ssl.TLSVersion.TLSv1_2


class Server(uvicorn.Server):
    """uvicorn's, with more connections in the kernel's queue than are accepted at once: asyncio has one number.

    Over TLS it listens with `TlsServer`.
    """

    config: ServerConfig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        if not self.config.is_ssl:
            await super().startup(sockets)
            for listening in (one for server in self.servers for one in server.sockets):
                with socket.fromfd(listening.fileno(), listening.family, listening.type) as same:
                    same.listen(_BACKLOG)
            return
        listening_over_tls = await self._bind()
        await super().startup([])
        self.servers = [self._tls_server(listening) for listening in listening_over_tls]  # type: ignore[misc]
        self._log_started_message(listening_over_tls)

    async def _bind(self) -> list[socket.socket]:
        """Listen at every address of the host; end the process, as uvicorn does, where one is taken."""
        host, port = self.config.host, self.config.port
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [
                socket.create_server(address, family=family, backlog=_BACKLOG)
                for family, *_, address in dict.fromkeys(found)
            ]
        except OSError as error:
            logger.error("cannot listen", extra={"error": str(error)})
            sys.exit(STARTUP_FAILURE)

    def _tls_server(self, listening: socket.socket) -> TlsServer:
        config = self.config
        assert config.ssl is not None

        def make_protocol() -> BoundedProtocol:
            return BoundedProtocol(config, self.server_state, self.lifespan.state)

        return TlsServer(listening, config.ssl, make_protocol, config.crowd, config.limits.header_seconds)


def allow_open_files(max_connections: int) -> None:
    """Raise the process' soft limit of open files to what so many connections need, as far as the system lets it."""
    needed = max_connections + _ACCEPTED_AT_ONCE + _OTHER_OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning("too few open files are allowed", extra={"allowed": allowed, "needed": needed})
