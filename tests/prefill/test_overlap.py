"""Messages that are written while the device goes on: they are those of a CPU, in its order, and none is lost."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager

import pytest
import torch

from common.errors import SkeletonError
from common.model.decoder import DecoderModel
from common.pb import prefill_pb2
from common.skeleton import wire
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec
from services.prefill import scheduler as scheduler_module
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.phases import Phases
from services.prefill.scheduler import PrefillScheduler
from tests.families import tiny_model

PROMPT = [5] * 3000
KEPT = 300
needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Layers(PrefillEngine):
    """Computes nothing of use: its layers' keys and values are made before, and overwritten as soon as it goes on."""

    def __init__(self, model: DecoderModel, device: str, bad_layer: int | None = None) -> None:
        super().__init__(model)
        self.device, self.bad_layer = torch.device(device), bad_layer
        self.steps = 0

    def run(self, token_ids: list[int], selection: Selection) -> Generator[Output, None, None]:
        spec = self.model.spec
        for layer in range(spec.num_layers):
            generator = torch.Generator().manual_seed(layer)
            shape = (KEPT, spec.num_kv_heads, spec.head_dim)
            keys, values = (torch.randn(shape, generator=generator).to(self.device) for _ in range(2))
            if layer == self.bad_layer:
                keys[40, 0, 0] = torch.inf
            self.steps += 1
            yield None
            self._keep_busy()
            self.steps += 1
            yield KeptLayer(layer, keys, values, None, torch.arange(KEPT))
            if self.device.type == "cuda":
                keys.fill_(7), values.fill_(7)
            del keys, values
        self.steps += 1
        yield PromptEnd(torch.ones(spec.hidden_size, device=self.device), 2, 0.0)

    def _keep_busy(self) -> None:
        if self.device.type == "cuda":
            work = torch.rand(4096, 4096, device=self.device)
            for _ in range(20):
                work = work @ work / 4096


@pytest.fixture
def model() -> DecoderModel:
    return DecoderModel(tiny_model("llama", num_hidden_layers=6), "tiny")


@asynccontextmanager
async def running(engine: PrefillEngine) -> AsyncIterator[PrefillScheduler]:
    scheduler = PrefillScheduler(engine, max_queued_tokens=20_000)
    loop = asyncio.create_task(scheduler.run())
    yield scheduler
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def sent(scheduler: PrefillScheduler, engine: PrefillEngine, codec: str) -> list[bytes]:
    """Return a prompt's messages, without its times."""
    skeleton = SkeletonSpec.of(engine.model.spec, PROMPT, Selection(codec=codec))
    phases, events = Phases(), []
    async for event in scheduler.stream(PROMPT, skeleton, phases=phases):
        if event.HasField("result"):
            event.result.queue_seconds = event.result.prefill_seconds = 0.0
        if not event.HasField("progress"):
            events.append(event.SerializeToString())
    assert len(phases.layers) == 6
    return events


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose layers arrive late; on a CPU they only seem to."""
    if request.param == "cpu":
        monkeypatch.setattr(wire.EncodedLayer, "has_arrived", False)
    return request.param


@pytest.mark.parametrize("codec", CODECS)
async def test_late_layers_are_a_cpus(
    codec: str, late: str, model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CHUNK_BYTES", 4000)
    engine = Layers(model, late)
    async with running(engine) as scheduler:
        several = await asyncio.gather(*(sent(scheduler, engine, codec) for _ in range(3)))
    with monkeypatch.context() as patch:
        patch.setattr(wire.EncodedLayer, "has_arrived", True)
        plain = Layers(model, "cpu")
        async with running(plain) as scheduler:
            expected = await sent(scheduler, plain, codec)
    assert several == [expected] * 3
    assert prefill_pb2.PrefillEvent.FromString(expected[-1]).HasField("result")
    layers = [prefill_pb2.PrefillEvent.FromString(event).chunk.layer for event in expected[:-1]]
    assert layers == sorted(layers)
    assert set(layers) == set(range(6))


async def test_a_late_layer_that_is_not_finite_ends_its_prompt_alone(late: str, model: DecoderModel) -> None:
    bad = Layers(model, late, bad_layer=5)
    async with running(bad) as scheduler:
        with pytest.raises(SkeletonError, match="not finite"):
            await sent(scheduler, bad, "int8")
        bad.bad_layer = None
        assert len(await sent(scheduler, bad, "int8")) == 7
        assert scheduler.num_jobs == 0


async def test_leaving_drops_what_is_on_its_way(late: str, model: DecoderModel) -> None:
    engine = Layers(model, late)
    skeleton = SkeletonSpec.of(model.spec, PROMPT, Selection())
    async with running(engine) as scheduler:
        async with aclosing(scheduler.stream(PROMPT, skeleton)) as events:
            await anext(events)
            (job,) = scheduler._jobs
        while scheduler.num_jobs:
            await asyncio.sleep(0.001)
        assert job._encoded is None


async def test_a_late_layer_is_held_up_with_its_reader(
    late: str, model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "_OUTBOX_BYTES", 1)
    engine = Layers(model, late)
    skeleton = SkeletonSpec.of(model.spec, PROMPT, Selection())
    async with running(engine) as scheduler:
        stream = scheduler.stream(PROMPT, skeleton)
        first = await anext(stream)
        await asyncio.sleep(0.1)
        assert engine.steps <= 6, "a layer on its way, one in the outbox, and one with the reader"
        rest = [event async for event in stream]
        assert [event.chunk.layer for event in (first, *rest[:-1])] == list(range(6))
        assert rest[-1].HasField("result")
