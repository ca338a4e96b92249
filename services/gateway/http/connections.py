"""The HTTP server under the app, and its bounds on connections: how many, how large a head, how long it may take."""

import asyncio
import logging
import ssl
from typing import Any, Literal

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from services.gateway.settings import GatewaySettings

MAX_HEAD_BYTES = 16 * 1024
"""A request line and headers that are incomplete at this size are refused."""

_CLOSE_SECONDS = 1
"""For connections to close once no request is under way, or the grace time is over."""

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
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
            ssl_certfile=settings.http_tls_cert,
            ssl_keyfile=settings.http_tls_key,
            log_config=None,
            access_log=False,
            lifespan=lifespan,
            ws="none",
        )
        self.max_connections = settings.max_connections
        self.header_timeout_seconds = settings.header_timeout_seconds

    def load(self) -> None:
        """Prepare what the server needs."""
        super().load()
        if self.ssl is not None:
            self.ssl.minimum_version = ssl.TLSVersion.TLSv1_2


class BoundedProtocol(H11Protocol):
    """One connection. uvicorn times only idle ones, and one byte now and then is not idle."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, ServerConfig)
        self._max_connections = config.max_connections
        self._timeout_seconds = config.header_timeout_seconds
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take the connection unless there are too many; its first request is due."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            logger.warning("connection refused", extra={"max_connections": self._max_connections})
            transport.abort()
            return
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        """Read on, for as long as the client has time."""
        super().data_received(data)
        if not self._client_owes:
            self._clear_timer()
        elif self._timer is None:
            self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._clear_timer()
        super().connection_lost(exc)

    @property
    def _client_owes(self) -> bool:
        """Whether a head has begun, or a body goes on that no handler waits for: its answer is sent already."""
        state = self.conn.their_state
        return state is h11.IDLE or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(self._timeout_seconds, self._on_overdue)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_overdue(self) -> None:
        logger.info("client too slow", extra={"header_timeout_seconds": self._timeout_seconds})
        self.transport.abort()
