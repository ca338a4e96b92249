"""The prefill worker's process."""

import asyncio
import logging
from concurrent.futures import Executor

from common import freed_memory, garbage, rpc
from common.logging import configure
from common.metrics import new_registry
from common.metrics_server import serving_metrics
from common.model import decoder
from common.model.compute import compute_thread
from common.model.source import resolve, served_name
from common.pb import prefill_pb2_grpc
from common.settings import check_ports
from common.trace_export import exporting
from common.transport.redis_store import open_store
from services.prefill.blocks import sentence_ends
from services.prefill.engine import CPU_CHUNK_TOKENS, PrefillEngine
from services.prefill.faults import Faults
from services.prefill.metrics import PrefillMetrics
from services.prefill.scheduler import PrefillScheduler
from services.prefill.server import PrefillServer
from services.prefill.settings import PrefillSettings
from services.prefill.structkv.calibration import stored_pivot

logger = logging.getLogger(__name__)


def run(settings: PrefillSettings) -> None:
    """Load the model and serve until a signal.

    Raises ModelLoadError if the model cannot be served, OSError if an address is taken.
    """
    configure("prefill", settings.log_level)
    check_ports(settings)
    freed_memory.keep()
    compute = compute_thread("prefill", settings.threads)
    engine = compute.submit(_load, settings).result()
    garbage.freeze()
    with exporting("prefill"):
        asyncio.run(_serve(settings, engine, compute))


def _load(settings: PrefillSettings) -> PrefillEngine:
    model = decoder.load(settings.model, device=settings.device, dtype=settings.dtype, step_tokens=CPU_CHUNK_TOKENS)
    return PrefillEngine(
        model,
        calibrated_pivot=stored_pivot(model.spec.fingerprint, settings.calibration),
        sentence_ends=sentence_ends(resolve(settings.model, weights=True), model.spec.vocab_size),
    )


async def _serve(settings: PrefillSettings, engine: PrefillEngine, compute: Executor) -> None:
    scheduler = PrefillScheduler(engine, settings.max_queued_tokens, compute)
    faults = Faults.parse(settings.faults) if settings.faults else None
    if faults is not None:
        logger.warning("skeletons are damaged on purpose", extra={"faults": settings.faults})
    registry = new_registry("prefill", served_name(settings.model), settings.certificates)
    metrics = PrefillMetrics(registry)
    async with open_store(settings) as store, serving_metrics(registry, settings.host, settings.metrics_port):
        metrics.watch(scheduler)
        server = PrefillServer(engine, scheduler, store, faults, metrics)
        await rpc.serve(
            lambda grpc_server: prefill_pb2_grpc.add_PrefillServicer_to_server(server, grpc_server),
            scheduler.run(),
            host=settings.host,
            port=settings.port,
            grace_seconds=settings.grace_seconds,
            max_rpcs=settings.max_rpcs,
            tls=settings.tls,
            makes_progress=lambda: scheduler.makes_progress,
        )
