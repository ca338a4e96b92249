"""Looks on while the prefill engine runs a prompt, and notes what it kept and why."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.model.decoder import ModelSpec
from common.skeleton.selection import Selection
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, PromptEnd
from services.prefill.selectors.base import Judgement, Selector
from services.prefill.selectors.registry import selector_for
from services.prefill.structkv.pivot import LayerMetrics
from services.prefill.structkv.selector import StructKV


@dataclass(slots=True)
class Recording:
    """One prompt's way through the engine. All tensors are on the CPU.

    Attributes:
        model: its geometry.
        token_ids: [N].
        selection: as the worker gets it.
        layers_run: [N], int64: how many layers, from the first on, each token went through.
        kept: of each layer, the places in the prompt, [kept] or [G, kept], int64.
        scores: of each layer that was scored, what it gave the tokens that it saw: [N], float32, NaN for the others.
        centrality: [N], float32: C when the token was last seen; None for methods that have none.
        blocks: [N], int64: each token's sentence or line; None if tokens were chosen one by one.
        pivot_layer: L*; None if nothing was cut.
        observed: the metrics of the layers where the pivot was looked for; empty if it was known before.
        compute_seconds: what the engine took.
    """

    model: ModelSpec
    token_ids: list[int]
    selection: Selection
    layers_run: Tensor
    kept: list[Tensor] = field(default_factory=list)
    scores: dict[int, Tensor] = field(default_factory=dict)
    centrality: Tensor | None = None
    blocks: Tensor | None = None
    pivot_layer: int | None = None
    observed: dict[int, LayerMetrics] = field(default_factory=dict)
    compute_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """N."""
        return len(self.token_ids)

    @property
    def is_whole(self) -> bool:
        """Whether the method never came to choose: it keeps everything, or the prompt is short."""
        return self.selection.keeps_everything(self.prompt_tokens)

    @property
    def kept_tokens(self) -> list[int]:
        """How many tokens each layer keeps, of each KV head."""
        return [places.shape[-1] for places in self.kept]

    def heads_keeping(self) -> Tensor:
        """Return how many KV heads keep each token in each layer: [L, N], uint8."""
        heads = torch.zeros(len(self.kept), self.prompt_tokens, dtype=torch.int64)
        for row, places in zip(heads, self.kept, strict=True):
            shared = self.model.num_kv_heads if places.dim() == 1 else 1
            row.index_add_(0, places.flatten(), torch.full((places.numel(),), shared))
        return heads.to(torch.uint8)

    def layers_keeping(self) -> Tensor:
        """Return in how many layers each token is kept, a layer's share being its heads': [N], float64."""
        return self.heads_keeping().double().sum(dim=0) / self.model.num_kv_heads


class _Onlooker:
    """Turns what a selector says of the tokens that came to a layer into what it says of the prompt's."""

    def __init__(self, recording: Recording, selector: Selector) -> None:
        self._recording = recording
        self._selector = selector
        self._here = torch.arange(recording.prompt_tokens)

    def __call__(self, judgement: Judgement) -> None:
        recording = self._recording
        recording.scores[judgement.layer] = self._spread(self._selector.over_heads(judgement.scores))
        if (centrality := self._selector.centrality) is not None:
            before = recording.centrality
            recording.centrality = self._spread(centrality, before)
        if judgement.going_on is not None:
            going_on = self._here[judgement.going_on.cpu()]
            stays = torch.ones(recording.prompt_tokens, dtype=torch.bool)
            stays[going_on] = False
            left = self._here[stays[self._here]]
            recording.layers_run[left] = judgement.layer + 1
            self._here = going_on

    def _spread(self, values: Tensor, before: Tensor | None = None) -> Tensor:
        spread = torch.full((self._recording.prompt_tokens,), torch.nan) if before is None else before.clone()
        spread[self._here] = values.float().cpu()
        return spread


OnLayer = Callable[[KeptLayer], None]


@torch.inference_mode()
def record(engine: PrefillEngine, token_ids: list[int], selection: Selection, on_layer: OnLayer) -> Recording:
    """Run a prompt; hand on each layer's kept keys and values, of which only the places are recorded.

    Raises InvalidRequestError, ContextLengthError for a prompt that the engine does not take.
    """
    engine.check(token_ids)
    model = engine.model.spec
    recording = Recording(model, token_ids, selection, torch.full((len(token_ids),), model.num_layers))
    selector = selector_for(selection, engine.scope(token_ids))
    selector.on_judgement = _Onlooker(recording, selector)
    if not recording.is_whole and selector.blocks is not None:
        recording.blocks = selector.blocks.cpu()
    for _, output in engine.run_all(token_ids, [selector]):
        if isinstance(output, KeptLayer):
            recording.kept.append(output.places.cpu())
            on_layer(output)
        elif isinstance(output, PromptEnd):
            recording.pivot_layer = output.pivot_layer
            recording.compute_seconds = output.compute_seconds
    if isinstance(selector, StructKV):
        recording.observed = dict(selector.pivot.observed)
    return recording
