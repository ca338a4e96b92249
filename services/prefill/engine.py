"""Prefill of one prompt as a generator: layer by layer over the whole sequence, a chunk of tokens at each step.

A chunk goes through the whole layer, projections, attention and MLP, before the next one starts, so activations
are bounded by the chunk, not by the prompt. Full keys and values exist for one layer at a time. What a layer keeps
is handed out as soon as the layer is done.
Several selections of the same prompt can run side by side: they share the layers until one drops tokens.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter

import torch
from torch import Tensor

from common.errors import ContextLengthError, InvalidRequestError
from common.model.decoder import DecoderModel, Rotary
from common.model.positions import Positions
from common.skeleton.selection import Selection
from services.prefill.attention import SequenceAttention
from services.prefill.cudnn import tiles_for
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.pace import Pace
from services.prefill.selectors.base import Decision, LayerView, Scope, Selector
from services.prefill.selectors.full import Full
from services.prefill.selectors.registry import selector_for


@dataclass(eq=False, slots=True)
class _Run:
    """One selection on its way: which of those asked for it is, its state, what it last decided, the time it took."""

    index: int
    selector: Selector
    going_on: Tensor | None = None
    compute_seconds: float = 0.0


@dataclass(eq=False, slots=True)
class _Walk:
    """A sequence on its way through the layers, and the runs that still agree on it."""

    hidden: Tensor  # [1, tokens, D]
    positions: Positions
    rotary: Rotary
    runs: list[_Run] = field(default_factory=list)

    def fork(self, run: _Run) -> "_Walk":
        """Return a walk of the run's own, with the tokens that go on."""
        assert run.going_on is not None
        going_on = run.going_on
        rotary = {kind: (cos[:, going_on], sin[:, going_on]) for kind, (cos, sin) in self.rotary.items()}
        return _Walk(self.hidden[:, going_on], self.positions.at(going_on), rotary, [run])


CPU_CHUNK_TOKENS = 1024
"""Tokens that a step runs through a layer: on a CPU a chunk's activations stay in its caches."""
GPU_CHUNK_TOKENS = 16384
"""The same where a chunk has to fill the device."""


_TRIAL_TOKENS = 512
"""Of a prompt that tells whether the worker computes at all."""


class PrefillEngine:
    """Runs prompts on one model."""

    def __init__(
        self,
        model: DecoderModel,
        *,
        calibrated_pivot: int | None = None,
        sentence_ends: Tensor | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        """Take a model, its L* if it was calibrated, and which tokens of its vocabulary end a sentence, [V].

        A step runs at most `chunk_tokens` through a layer; if None, as many as suit the device.
        """
        self.model = model
        self._calibrated_pivot = calibrated_pivot
        self._sentence_ends = sentence_ends
        self._chunk_tokens = chunk_tokens or (CPU_CHUNK_TOKENS if model.device.type == "cpu" else GPU_CHUNK_TOKENS)
        self._tiles = tiles_for(model.spec, model.device, self._chunk_tokens)
        self._pace = Pace(model.device)

    def check(self, token_ids: list[int]) -> None:
        """Raise for a prompt that cannot be run: empty, too long, or with ids outside the vocabulary."""
        spec = self.model.spec
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if len(token_ids) > spec.max_tokens:
            raise ContextLengthError(f"the prompt has {len(token_ids)} tokens, the model's length is {spec.max_tokens}")
        if max(token_ids) >= spec.vocab_size:
            raise InvalidRequestError(f"token id {max(token_ids)} is outside the vocabulary", param="prompt")

    def run(self, token_ids: list[int], selection: Selection) -> Generator[Output, None, None]:
        """Yield every layer's kept K/V in order, then the prompt's end; None after a step that completes neither."""
        selector = selector_for(selection, self.scope(token_ids))
        # No loop variable: it would hold on to a layer while the next one runs.
        yield from map(itemgetter(1), self.run_all(token_ids, [selector]))

    def try_out(self) -> None:
        """Run a short prompt; raise what is raised where that is not possible."""
        for _ in self.run([0] * min(_TRIAL_TOKENS, self.model.spec.max_tokens), Selection(method="full")):
            pass

    def scope(self, token_ids: list[int]) -> Scope:
        """Return what a selector of a prompt is told."""
        windows = self.model.spec.windows
        full_layers = tuple(layer for layer, window in enumerate(windows) if window is None)
        ends = None if self._sentence_ends is None else self._sentence_ends[torch.tensor(token_ids)]
        return Scope(len(token_ids), len(windows), full_layers, self.model.device, self._calibrated_pivot, ends)

    def run_all(self, token_ids: list[int], selectors: Sequence[Selector]) -> Generator[tuple[int, Output], None, None]:
        """Run one prompt for several selectors; yield each one's outputs in order, with its index.

        A layer is computed once for all selectors that have dropped the same tokens so far: none.
        """
        runs = [_Run(index, selector) for index, selector in enumerate(selectors)]
        walks = [self._start(token_ids, runs)]
        restarts: list[_Run] = []
        for layer in range(self.model.spec.num_layers):
            forks: list[_Walk] = []
            for walk in walks:
                attention = self._attention(walk, layer)
                for start, end in pairwise(self._chunk_bounds(len(walk.positions))):
                    if start:
                        yield walk.runs[0].index, None
                    self._forward(walk, layer, start, end, attention)
                staying = []
                for run in walk.runs:
                    yield run.index, self._keep(run, layer, attention)
                    if run.going_on is None:
                        staying.append(run)
                    elif run.selector.restarts:
                        restarts.append(run)
                    else:
                        forks.append(walk.fork(run))
                walk.runs = staying
                del attention  # and the layer's keys and values with it
            walks = [walk for walk in walks if walk.runs] + forks
        for walk in walks:
            for run in walk.runs:
                yield run.index, self._end(walk, run)
        for run in restarts:
            yield from self._restart(token_ids, run)

    def _start(self, token_ids: list[int], runs: list[_Run]) -> _Walk:
        device = self.model.device
        positions = Positions(torch.arange(len(token_ids), device=device), torch.arange(len(token_ids)))
        hidden = self.model.embed(torch.tensor([token_ids], device=device))
        return _Walk(hidden, positions, self.model.rotary(positions.on_device[None]), runs)

    def _attention(self, walk: _Walk, layer: int) -> SequenceAttention:
        observed = max(run.selector.observed_queries for run in walk.runs)
        return SequenceAttention(walk.positions, self.model.spec.windows[layer], observed, self._tiles)

    def _chunk_bounds(self, num_tokens: int) -> list[int]:
        """Return where the chunks of a sequence start and end: as few as may be, of equal length.

        Or all full but the last, where that is what attention is quicker for.
        """
        if self._tiles is not None:
            return [*range(0, num_tokens, self._chunk_tokens), num_tokens]
        num_chunks = -(-num_tokens // self._chunk_tokens)
        return [num_tokens * chunk // num_chunks for chunk in range(num_chunks + 1)]

    @torch.inference_mode()
    def _forward(self, walk: _Walk, layer: int, start: int, end: int, attention: SequenceAttention) -> None:
        """Run the tokens from `start` to `end` through a layer, in place: later ones see their keys alone."""
        started = time.monotonic()
        rotary = {kind: (cos[:, start:end], sin[:, start:end]) for kind, (cos, sin) in walk.rotary.items()}
        hidden, positions = walk.hidden[:, start:end], walk.positions.on_device[None, start:end]
        hidden.copy_(self.model.layer(layer, hidden, rotary, positions, attention))
        self._pace.step()
        for run in walk.runs:
            run.compute_seconds += time.monotonic() - started

    def _keep(self, run: _Run, layer: int, attention: SequenceAttention) -> KeptLayer | None:
        """Return what a run keeps of the layer that just ran; note who goes on."""
        started = time.monotonic()
        window = self.model.spec.windows[layer]
        if window is not None:
            decision = self._kept_window(run, attention.positions, window)
        else:
            decision = run.selector.select(LayerView(layer, attention.query, attention.key, attention.scaling))
        run.going_on = decision.going_on
        kept = None
        if decision.kept is not None:
            kept = _gather(layer, attention, decision.kept, slides=window is not None)
            kept = replace(kept, select_seconds=time.monotonic() - started)
        run.compute_seconds += time.monotonic() - started
        return kept

    def _kept_window(self, run: _Run, positions: Positions, window: int) -> Decision:
        """Keep exactly a sliding-window layer's window: its memory is bounded as it is. It is not scored."""
        if run.selector.restarts:
            return Decision(None, None)
        on_host = positions.on_host
        first = int(torch.searchsorted(on_host, on_host[-1] - window + 1))
        return Decision(torch.arange(first, len(positions), device=self.model.device), None)

    def _end(self, walk: _Walk, run: _Run) -> PromptEnd:
        return PromptEnd(walk.hidden[0, -1].clone(), run.selector.pivot_layer, run.compute_seconds)

    def _restart(self, token_ids: list[int], run: _Run) -> Iterator[tuple[int, Output]]:
        """Run the chosen tokens as a prompt of their own, and keep all of it."""
        assert run.going_on is not None
        prompt = [token_ids[place] for place in run.going_on.tolist()]
        for _, output in self.run_all(prompt, [Full(run.selector.selection, self.scope(prompt))]):
            if isinstance(output, PromptEnd):
                seconds = run.compute_seconds + output.compute_seconds
                yield run.index, PromptEnd(output.hidden_state, run.selector.pivot_layer, seconds)
            elif isinstance(output, KeptLayer):
                yield run.index, replace(output, places=run.going_on[output.places])
            else:
                yield run.index, output


def _gather(layer: int, attention: SequenceAttention, kept: Tensor, *, slides: bool) -> KeptLayer:
    """Take the kept tokens out of [G, N, d]: one set for all groups, or [G, kept], one for each."""

    def take(full: Tensor) -> Tensor:
        if kept.dim() == 1:
            return full[:, kept].transpose(0, 1).contiguous()
        index = kept[:, :, None].expand(-1, -1, full.shape[-1])
        return full.gather(1, index).transpose(0, 1).contiguous()

    places = attention.positions.on_device[kept]
    return KeptLayer(layer, take(attention.key), take(attention.value), places if slides else None, places)
