"""The gateway's process."""

import logging
import signal
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common.errors import ModelLoadError
from common.logging import configure
from services.gateway.drain import Drain
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings

_CLOSE_SECONDS = 1
"""For connections to close once no request is under way, or the grace time is over."""

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
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
    configure("gateway", settings.log_level)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))  # until the server takes them over
    try:
        app = create_app(settings)
    except ModelLoadError as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)
    DrainingServer(_config(app, settings), app.state.drain).run()


def _config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
