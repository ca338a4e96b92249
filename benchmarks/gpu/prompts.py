"""Time to first token of long prompts as a worker's scheduler runs them: computing, choosing, encoding, messages."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import torch

from benchmarks.engines import synchronise
from benchmarks.gpu.scale import Scale
from benchmarks.measure import random_tokens
from benchmarks.random_models import LLAMA_8B, random_llama
from benchmarks.record import Parameter, Row
from common import freed_memory
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from services.prefill.engine import PrefillEngine
from services.prefill.phases import PHASES, Phases
from services.prefill.scheduler import PrefillScheduler

_MAX_QUEUED_TOKENS = 1 << 21
_WARM_UP_TOKENS = 3000
_NOVEL = (0, -37, -101)
"""Added to a length: whatever a library builds for each new one is paid for in every sample."""
_SENTENCE_TOKENS = 25
"""One token in so many ends a sentence."""
_COMPUTE = ThreadPoolExecutor(1, thread_name_prefix="prefill")
"""The one thread that computes, as a worker's: cuDNN's plans are made anew in each."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """A prompt's run: seconds to its last message, where they went, and the most memory, weights included, in bytes."""

    seconds: float
    phases: Phases
    peak: int

    def rows(self, **parameters: Parameter) -> Iterator[Row]:
        """Yield all of it."""
        yield Row("ttft", parameters, [self.seconds], "s")
        for phase, seconds in zip(PHASES, astuple(self.phases.total()), strict=False):
            yield Row("phase", {**parameters, "phase": phase}, [seconds], "s")
        yield Row("peak_memory", parameters, [self.peak], "bytes")


def prompts(scale: Scale) -> Iterator[Row]:
    """Yield TTFT and its phases at each length, of structkv and of full, each time of a length not seen before."""
    engine = _engine(scale, num_layers=None)
    methods = {"structkv": Selection(pivot_layer=scale.pivot_layer), "full": Selection(method="full")}
    for selection in methods.values():
        _time(engine, _WARM_UP_TOKENS, selection)
    for about in scale.prompts:
        ratios = []
        for more in _NOVEL:
            seconds = {}
            for name, selection in methods.items():
                timed = _time(engine, about + more, selection)
                yield from timed.rows(method=name, length=about + more)
                seconds[name] = timed.seconds
            ratios.append(seconds["full"] / seconds["structkv"])
        yield Row("speedup", {"about": about}, ratios, "times as fast as full")


def longest(scale: Scale) -> Iterator[Row]:
    """Yield the longest prompt's seconds, extrapolated from a layer before the pivot and one after it."""
    engine = _engine(scale, num_layers=2)
    selection = Selection(pivot_layer=1)
    _time(engine, _WARM_UP_TOKENS, selection)
    timed = _time(engine, scale.longest_prompt, selection)
    yield from timed.rows(method="structkv", length=scale.longest_prompt, layers=2)
    before, after = (sum(astuple(layer)) for layer in timed.phases.layers)
    yield Row("layer", {"length": scale.longest_prompt, "of": "before the pivot"}, [before], "s")
    yield Row("layer", {"length": scale.longest_prompt, "of": "after the pivot"}, [after], "s")
    layers = int(str(scale.llama.get("num_hidden_layers", LLAMA_8B["num_hidden_layers"])))
    seconds = scale.pivot_layer * before + (layers - scale.pivot_layer) * after
    yield Row("ttft, extrapolated", {"length": scale.longest_prompt, "method": "structkv"}, [seconds], "s")


def longest_whole(scale: Scale) -> Iterator[Row]:
    """Yield the longest prompt's seconds through all layers."""
    engine = _engine(scale, num_layers=None)
    selection = Selection(pivot_layer=scale.pivot_layer)
    _time(engine, _WARM_UP_TOKENS, selection)
    yield from _time(engine, scale.longest_prompt, selection).rows(method="structkv", length=scale.longest_prompt)


def _engine(scale: Scale, num_layers: int | None) -> PrefillEngine:
    freed_memory.keep()  # as the worker does
    overrides = scale.llama if num_layers is None else {**scale.llama, "num_hidden_layers": num_layers}
    model = DecoderModel(random_llama(scale.device, scale.dtype, **overrides), "random-llama")
    ends = torch.arange(model.spec.vocab_size) % _SENTENCE_TOKENS == 0
    return _COMPUTE.submit(PrefillEngine, model, sentence_ends=ends).result()


def _time(engine: PrefillEngine, length: int, selection: Selection) -> _Timed:
    """Run a prompt as the server does, for a reader that keeps up."""
    token_ids = random_tokens(length, engine.model.spec.vocab_size)
    skeleton = SkeletonSpec.of(engine.model.spec, token_ids, selection)
    device = engine.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronise(device)

    async def run() -> _Timed:
        scheduler, phases = PrefillScheduler(engine, _MAX_QUEUED_TOKENS, _COMPUTE), Phases()
        steps = asyncio.ensure_future(scheduler.run())
        started = time.perf_counter()
        async for _ in scheduler.stream(token_ids, skeleton, phases=phases):
            pass
        seconds = time.perf_counter() - started
        steps.cancel()
        return _Timed(seconds, phases, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)

    return asyncio.run(run())
