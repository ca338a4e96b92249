"""The gateway's process."""

import logging
import signal
import sys

import uvicorn

from common.errors import ModelLoadError
from common.logging import configure
from common.network import is_loopback
from services.gateway.connections import ServerConfig
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)


def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end within the grace time.

    Exits non-zero, with the reason in the log, if the model cannot be read or the address is taken.
    """
    configure("gateway", settings.log_level, exception_messages=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes both over while it serves, and raises what it took again when it is done:
        # that is then a clean end, not a death by signal.
        signal.signal(signum, lambda *_: sys.exit(0))
    try:
        app = create_app(settings)
    except ModelLoadError as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)
    _warn_of_exposure(settings)
    uvicorn.Server(ServerConfig(app, settings)).run()


def _warn_of_exposure(settings: GatewaySettings) -> None:
    if is_loopback(settings.host):
        return
    if not settings.all_api_keys:
        logger.warning("open to whoever reaches %s: set api_keys or api_keys_file", settings.host)
    elif settings.http_tls_cert is None:
        logger.warning("API keys and prompts arrive in plain text: set http_tls_cert, or end TLS in front")
