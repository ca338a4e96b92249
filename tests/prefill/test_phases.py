"""Where a prompt's time goes: nothing is lost between the phases, whoever else runs in between."""

import asyncio
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from services.prefill.engine import PrefillEngine
from services.prefill.phases import Phases, Times
from services.prefill.scheduler import PrefillScheduler

PROMPT = [3 + (7 * index) % 250 for index in range(600)]
CUT = Selection(floor_tokens=0, window_tokens=8, block_tokens=0, pivot_layer=2)


async def run(scheduler: PrefillScheduler, model: DecoderModel, selection: Selection) -> tuple[Phases, float]:
    """Run a prompt; return its phases and how long it took, by the result that decode gets."""
    phases, skeleton = Phases(), SkeletonSpec.of(model.spec, PROMPT, selection)
    async for event in scheduler.stream(PROMPT, skeleton, phases=phases):
        if event.HasField("result"):
            return phases, event.result.queue_seconds + event.result.prefill_seconds
    raise AssertionError


@pytest.fixture
async def scheduler(tiny: Callable[[str], DecoderModel]):
    scheduler = PrefillScheduler(PrefillEngine(tiny("llama"), chunk_tokens=128), max_queued_tokens=10_000)
    running = asyncio.create_task(scheduler.run())
    yield scheduler
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_every_layer_has_its_phases(scheduler: PrefillScheduler, tiny: Callable[[str], DecoderModel]) -> None:
    model = tiny("llama")
    phases, seconds = await run(scheduler, model, CUT)
    assert len(phases.layers) == model.spec.num_layers
    assert phases.pivot_layer == 2
    for times in phases.layers:
        assert min(times.compute, times.select, times.encode) > 0
    assert phases.total().queue + phases.total().prefill == pytest.approx(seconds)


async def test_what_others_take_is_waiting(scheduler: PrefillScheduler, tiny: Callable[[str], DecoderModel]) -> None:
    model = tiny("llama")
    both = await asyncio.gather(run(scheduler, model, CUT), run(scheduler, model, CUT))
    computed = sum(phases.total().prefill for phases, _ in both)
    last = max(seconds for _, seconds in both)
    assert computed <= last


async def test_a_prompt_that_stays_whole_has_one_stage(
    scheduler: PrefillScheduler, tiny: Callable[[str], DecoderModel], spans: InMemorySpanExporter
) -> None:
    phases, seconds = await run(scheduler, tiny("llama"), Selection(method="full"))
    phases.add_spans()
    names = {span.name for span in spans.get_finished_spans()}
    assert names >= {"prefill.layers", "prefill.queue", "prefill.compute", "prefill.encode"}
    assert not {"prefill.layers_to_pivot", "prefill.layers_after_pivot"} & names


def test_stages_are_split_at_the_pivot(spans: InMemorySpanExporter) -> None:
    phases = Phases(arrived=100.0)
    for number in range(4):
        phases.step(Times(queue=1.0, compute=2.0, select=0.5, encode=0.25), ends_layer=False)
        phases.step(Times(queue=1.0, compute=2.0 + number), ends_layer=True)
    phases.pivot_layer = 3
    phases.add_spans()
    seconds = {span.name: (span.end_time - span.start_time) / 1e9 for span in spans.get_finished_spans()}
    assert seconds["prefill.layers_to_pivot"] == pytest.approx(3 * (2 + 4.75) - 1 + 0 + 1 + 2)
    assert seconds["prefill.layers_after_pivot"] == pytest.approx(2 + 4.75 + 3)
    layers = {span.name: span.attributes.get("structkv.layers") for span in spans.get_finished_spans()}
    assert (layers["prefill.layers_to_pivot"], layers["prefill.layers_after_pivot"]) == (3, 1)
    assert phases.first_wait == 1.0


def test_a_prompt_that_never_had_a_turn_has_waited(spans: InMemorySpanExporter) -> None:
    Phases().add_spans()
    assert {"prefill.queue", "prefill.layers"} == {span.name for span in spans.get_finished_spans()}
