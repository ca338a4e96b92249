"""The decode worker's process."""

import asyncio
import logging
from collections.abc import Collection
from concurrent.futures import Executor
from contextlib import AsyncExitStack

import psutil

from common import garbage, rpc
from common.errors import ModelLoadError
from common.logging import configure
from common.metrics import new_registry
from common.metrics_server import serving_metrics
from common.model import decoder
from common.model.compute import compute_thread
from common.model.source import resolve, served_name
from common.pb import decode_pb2_grpc
from common.settings import check_ports
from common.skeleton.selection import CODECS
from common.trace_export import exporting
from common.transport.redis_store import open_store
from services.decode.engine import DecodeEngine, pool_blocks
from services.decode.grammar import GrammarCompiler
from services.decode.grammar_process import GrammarServer
from services.decode.metrics import DecodeMetrics
from services.decode.needle_probe import finds_needles
from services.decode.pool import BLOCK_TOKENS, KVPool
from services.decode.prefill_client import PrefillClient
from services.decode.scheduler import DecodeScheduler
from services.decode.server import DecodeServer
from services.decode.settings import DecodeSettings
from services.decode.skeleton_loader import SkeletonLoader
from services.decode.step_cost import StepCost

_FOR_HEALTH_CHECKS = 16
"""One call in so many is none of a request's."""

logger = logging.getLogger(__name__)


def run(settings: DecodeSettings) -> None:
    """Load the model and serve until a signal.

    Raises ModelLoadError if the model cannot be served, OSError if an address is taken.
    """
    configure("decode", settings.log_level)
    check_ports(settings)
    compute = compute_thread("decode", settings.threads)
    engine, grammar_server, codecs = compute.submit(_load, settings).result()
    step_cost = compute.submit(StepCost.measure, engine.seconds).result()
    logger.info("cost of a step measured", extra={"base_seconds": step_cost.base, "seconds_each": step_cost.each})
    garbage.freeze()
    with exporting("decode"):
        asyncio.run(_serve(settings, engine, grammar_server, codecs, compute, step_cost))


def _load(settings: DecodeSettings) -> tuple[DecodeEngine, GrammarServer, tuple[str, ...]]:
    """Return the engine, what compiles grammars for it, and the codecs in which it takes skeletons."""
    model = decoder.load(settings.model, device=settings.device, dtype=settings.dtype)
    num_blocks = pool_blocks(model, settings.kv_memory_gib, psutil.virtual_memory().available)
    if num_blocks < model.spec.num_layers:
        raise ModelLoadError(f"KV memory for {num_blocks} blocks is too little; raise kv_memory_gib")
    logger.info("KV memory reserved", extra={"num_blocks": num_blocks, "block_tokens": BLOCK_TOKENS})
    pool = KVPool(model.spec, num_blocks, model.device)
    engine = DecodeEngine(model, pool, backend=settings.attention_backend)
    folder = resolve(settings.model, weights=True)
    passed = finds_needles(engine, folder, "int4")
    grammar_server = GrammarServer(folder, model.spec.vocab_size)
    return engine, grammar_server, tuple(codec for codec in CODECS if passed or codec != "int4")


async def _serve(
    settings: DecodeSettings,
    engine: DecodeEngine,
    grammar_server: GrammarServer,
    codecs: Collection[str],
    compute: Executor,
    step_cost: StepCost,
) -> None:
    registry = new_registry("decode", served_name(settings.model), settings.certificates)
    metrics = DecodeMetrics(registry)
    scheduler = DecodeScheduler(
        engine,
        max_running=settings.max_running,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_requests=settings.max_rpcs - settings.max_rpcs // _FOR_HEALTH_CHECKS,
        compute=compute,
        step_cost=step_cost,
        on_step=metrics.stepped,
    )
    metrics.watch(scheduler, engine.pool)
    prefill = PrefillClient(stall_seconds=settings.stall_seconds, tls=settings.tls)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(prefill.close)
        grammars = GrammarCompiler(grammar_server)
        stack.callback(grammar_server.close)
        stack.callback(grammars.close)
        store = await stack.enter_async_context(open_store(settings))
        loader = SkeletonLoader(engine.pool, prefill, store, metrics)
        server = DecodeServer(engine, scheduler, loader, grammars, codecs, metrics)
        await stack.enter_async_context(serving_metrics(registry, settings.host, settings.metrics_port))
        await rpc.serve(
            lambda grpc_server: decode_pb2_grpc.add_DecodeServicer_to_server(server, grpc_server),
            scheduler.run(),
            host=settings.host,
            port=settings.port,
            grace_seconds=settings.grace_seconds,
            max_rpcs=settings.max_rpcs,
            tls=settings.tls,
            makes_progress=lambda: scheduler.makes_progress,
        )
