"""The gateway's process."""

import logging
import signal
import sys

import uvicorn
from fastapi import FastAPI

from common.errors import ModelLoadError
from common.logging import configure
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)


def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end within the grace time.

    Exits non-zero, with the reason in the log, if the model cannot be read or the address is taken.
    """
    configure("gateway", settings.log_level)
    for signum in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes both over while it serves, and raises what it took again when it is done:
        # that is then a clean end, not a death by signal.
        signal.signal(signum, lambda *_: sys.exit(0))
    try:
        app = create_app(settings)
    except ModelLoadError as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)
    uvicorn.Server(_config(app, settings)).run()


def _config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )
