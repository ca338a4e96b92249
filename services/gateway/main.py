"""The gateway's process."""

import logging
import signal
import sys
from types import FrameType

import uvicorn

from common import garbage
from common.errors import ModelLoadError
from common.logging import configure
from common.network import check_free, is_loopback
from common.trace_export import exporting
from services.gateway.http.connections import Server, ServerConfig, allow_open_files
from services.gateway.http.drain import Drain
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)


class DrainingServer(Server):
    """Listens on while it drains, so that `/ready` and new requests get an answer; uvicorn alone would stop at once."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain at the first signal; at the second, wait for nothing any more."""
        if self._drain.draining:
            self._drain.hurry()
        else:
            self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Tell uvicorn, which asks ten times a second, whether to end."""
        if self._drain.draining and not self._told:
            self._told = True
            logger.info("draining")
        if self._drain.over:
            self._drain.break_off()
            self.should_exit = True
        return await super().on_tick(counter)


def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end within the grace time.

    Exits non-zero, with the reason in the log, if the model cannot be read or the address is taken.
    """
    configure("gateway", settings.log_level, exception_messages=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))  # until the server takes them over
    try:
        check_free(settings.host, settings.port)
        app = create_app(settings)
    except (ModelLoadError, OSError) as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)
    _warn_of_exposure(settings)
    allow_open_files(settings.max_connections)
    garbage.freeze()
    with exporting("gateway"):
        DrainingServer(ServerConfig(app, settings), app.state.drain).run()


def _warn_of_exposure(settings: GatewaySettings) -> None:
    if is_loopback(settings.host):
        return
    if not settings.all_api_keys:
        logger.warning("open to whoever reaches %s: set api_keys or api_keys_file", settings.host)
    elif settings.http_tls_cert is None:
        logger.warning("API keys and prompts arrive in plain text: set http_tls_cert, or end TLS in front")
