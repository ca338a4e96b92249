"""Fixtures that several parts of the system are tested with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from common import tracing
from common.model.decoder import DecoderModel
from common.pb import decode_pb2, decode_pb2_grpc, prefill_pb2_grpc
from common.rpc_tracing import TracingInterceptor
from common.skeleton.selection import CODECS, Selection
from common.transport.redis_store import RedisStore
from services.decode.backend import Backend
from services.decode.engine import DecodeEngine
from services.decode.grammar import GrammarCompiler
from services.decode.metrics import DecodeMetrics
from services.decode.pool import KVPool
from services.decode.prefill_client import PrefillClient
from services.decode.scheduler import DecodeScheduler
from services.decode.server import DecodeServer
from services.decode.skeleton_loader import SkeletonLoader
from services.decode.step_cost import StepCost
from services.prefill.engine import PrefillEngine
from services.prefill.faults import Faults
from services.prefill.metrics import PrefillMetrics
from services.prefill.scheduler import PrefillScheduler
from services.prefill.server import PrefillServer
from tests.e2e.conftest import Up, start
from tests.families import tiny_model

FULL = Selection(method="full")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Return the service with its defaults, shared by all tests that leave it as it is."""
    running = start(tmp_path_factory.mktemp("up") / "output")
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], DecoderModel]:
    """Return the driven tiny model of a family."""
    models: dict[str, DecoderModel] = {}

    def get(family: str) -> DecoderModel:
        if family not in models:
            models[family] = DecoderModel(tiny_model(family), f"tiny-{family}")
        return models[family]

    return get


def poisoned_pool(model: DecoderModel, num_blocks: int) -> KVPool:
    """Return a pool full of NaN: whoever reads a slot that was never written is found out."""
    pool = KVPool(model.spec, num_blocks, model.device)
    pool.keys.fill_(float("nan"))
    pool.values.fill_(float("nan"))
    return pool


@dataclass
class Workers:
    """A decode and a prefill worker with their real servers, in this process."""

    prefill_engine: PrefillEngine
    prefill: PrefillScheduler
    prefill_target: str
    decode_engine: DecodeEngine
    decode: DecodeScheduler
    stub: "decode_pb2_grpc.DecodeAsyncStub"
    decode_target: str
    decode_registry: CollectorRegistry
    prefill_registry: CollectorRegistry
    decode_loop: "asyncio.Future[None]"

    def request(
        self, prompt: list[int], max_tokens: int, selection: Selection = FULL, **sampling: object
    ) -> decode_pb2.GenerateRequest:
        """Return a greedy request unless told otherwise."""
        options: dict[str, object] = {"top_p": 1.0, "max_tokens": max_tokens} | sampling
        return decode_pb2.GenerateRequest(
            request_id="test",
            prompt_token_ids=prompt,
            selection=selection.to_pb(),
            sampling=decode_pb2.Sampling(**options),  # type: ignore[arg-type]
            prefill_targets=[self.prefill_target],
        )

    async def generate(self, request: decode_pb2.GenerateRequest) -> list[decode_pb2.GenerateEvent]:
        """Return all events of a request."""
        return [event async for event in self.stub.Generate(request)]

    async def tokens(self, request: decode_pb2.GenerateRequest) -> list[int]:
        """Return the tokens of a request."""
        return [token for event in await self.generate(request) for token in event.token_ids]

    async def until_idle(self, timeout_seconds: float = 10) -> None:
        """Wait until no block is used and no prompt runs; fail if that does not come."""
        allocator = self.decode_engine.pool.allocator
        async with asyncio.timeout(timeout_seconds):
            while allocator.num_free < allocator.num_blocks or self.prefill.num_jobs:
                await asyncio.sleep(0.01)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Return the spans that are ended in this process, whichever service's they are."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_TRACER", provider.get_tracer("structkv"))
    return exporter


StartWorkers = Callable[..., Awaitable[Workers]]


@pytest.fixture
async def start_workers() -> AsyncIterator[StartWorkers]:
    """Return a function that starts a prefill and a decode worker for a model."""
    async with AsyncExitStack() as stack:

        async def start(
            model: DecoderModel,
            *,
            num_blocks: int = 4096,
            max_running: int = 16,
            codecs: Collection[str] = CODECS,
            prefill_model: DecoderModel | None = None,
            backend: Backend = "auto",
            store: RedisStore | None = None,
            faults: Faults | None = None,
            stall_seconds: float = 30,
            max_waiting_tokens: int = 1_000_000,
            max_queued_tokens: int = 1_000_000,
            grammars: GrammarCompiler | None = None,
            step_cost: StepCost | None = None,
        ) -> Workers:
            prefill_engine = PrefillEngine(prefill_model or model)
            prefill = PrefillScheduler(prefill_engine, max_queued_tokens)
            prefill_registry, decode_registry = CollectorRegistry(), CollectorRegistry()
            prefill_metrics, decode_metrics = PrefillMetrics(prefill_registry), DecodeMetrics(decode_registry)
            prefill_metrics.watch(prefill)
            prefill_server = PrefillServer(prefill_engine, prefill, store, faults, prefill_metrics)
            target = await stack.enter_async_context(
                _serving(
                    lambda server: prefill_pb2_grpc.add_PrefillServicer_to_server(prefill_server, server),
                    prefill.run(),
                )
            )
            engine = DecodeEngine(model, poisoned_pool(model, num_blocks), backend=backend)
            decode = DecodeScheduler(
                engine,
                max_running=max_running,
                max_waiting_tokens=max_waiting_tokens,
                max_requests=1000,
                step_cost=step_cost,
                on_step=decode_metrics.stepped,
            )
            decode_metrics.watch(decode, engine.pool)
            client = PrefillClient(stall_seconds=stall_seconds)
            stack.push_async_callback(client.close)
            loader = SkeletonLoader(engine.pool, client, store, decode_metrics)
            grammars = grammars or GrammarCompiler(None)
            stack.callback(grammars.close)
            decode_server = DecodeServer(engine, decode, loader, grammars, codecs, decode_metrics)
            decode_loop = asyncio.ensure_future(decode.run())
            decode_target = await stack.enter_async_context(
                _serving(
                    lambda server: decode_pb2_grpc.add_DecodeServicer_to_server(decode_server, server), decode_loop
                )
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(decode_target))
            stub = decode_pb2_grpc.DecodeStub(channel)
            return Workers(
                prefill_engine,
                prefill,
                target,
                engine,
                decode,
                stub,
                decode_target,
                decode_registry,
                prefill_registry,
                decode_loop,
            )

        yield start


@asynccontextmanager
async def _serving(register: Callable[[grpc.aio.Server], None], main_loop: Awaitable[None]) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[TracingInterceptor()])
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    task = asyncio.ensure_future(main_loop)
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
