"""Our own engines, set up as the services set theirs up, and timed."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model import decoder
from common.model.decoder import DecoderModel
from common.model.source import resolve
from common.skeleton.selection import Selection
from services.prefill.blocks import sentence_ends
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, PromptEnd
from services.prefill.selectors.base import Decision, LayerView, Selector
from services.prefill.selectors.registry import selector_for
from services.prefill.structkv.calibration import stored_pivot


def load_prefill(model: str, device: str = "cpu") -> PrefillEngine:
    """Load a model as a prefill worker does, with its calibration if it has one."""
    loaded = decoder.load(model, device=device, dtype="auto")
    ends = sentence_ends(resolve(model, weights=True), loaded.spec.vocab_size)
    return PrefillEngine(loaded, calibrated_pivot=stored_pivot(loaded.spec.fingerprint), sentence_ends=ends)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """One prompt's run.

    Attributes:
        seconds: to the first token's logits.
        selecting_seconds: of these, scoring and selecting.
        pivot_layer: L*, if a cut was made.
    """

    seconds: float
    selecting_seconds: float
    pivot_layer: int | None


class TimedPrefill:
    """Runs prompts with one selection."""

    def __init__(self, engine: PrefillEngine, selection: Selection) -> None:
        self._engine = engine
        self._selection = selection

    def __call__(self, token_ids: list[int]) -> Prefilled:
        """Run a prompt to its first token's logits; what is kept is let go of at once, as if it were sent."""
        engine = self._engine
        synchronise(engine.model.device)
        started = time.perf_counter()
        selector = selector_for(self._selection, engine.scope(token_ids))
        selecting = _Stopwatch(selector, engine.model.device)
        end = None
        for _, output in engine.run_all(token_ids, [selector]):
            if isinstance(output, PromptEnd):
                end = output
            del output  # or it would live through the next layer
        assert end is not None
        engine.model.logits(end.hidden_state[None]).argmax(dim=-1).cpu()
        return Prefilled(time.perf_counter() - started, selecting.seconds, end.pivot_layer)


def run_prompt(
    engine: PrefillEngine, token_ids: list[int], selection: Selection
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return what each layer keeps of a prompt, keys and values [kept, G, d], and the last hidden state, [D]."""
    layers: list[tuple[Tensor, Tensor]] = []
    for output in engine.run(token_ids, selection):
        if isinstance(output, KeptLayer):
            layers.append((output.keys, output.values))
        elif isinstance(output, PromptEnd):
            return layers, output.hidden_state
    raise AssertionError("the prompt did not end")


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to be done with what it was given; it is timed from here, or up to here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Stopwatch:
    """Stands in for a selector's `select` and sums up the time that it takes."""

    def __init__(self, selector: Selector, device: torch.device) -> None:
        self.seconds = 0.0
        self._select = selector.select
        self._device = device
        selector.select = self._timed  # type: ignore[method-assign]

    def _timed(self, view: LayerView) -> Decision:
        synchronise(self._device)
        started = time.perf_counter()
        decision = self._select(view)
        synchronise(self._device)
        self.seconds += time.perf_counter() - started
        return decision


def model_dtype(model: DecoderModel) -> str:
    """Return the dtype's name, as transformers and vLLM take it."""
    return str(model.spec.dtype).removeprefix("torch.")
