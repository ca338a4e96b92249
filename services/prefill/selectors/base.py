"""The interface of all selection methods: score, reduce over heads, accumulate over layers, budget, propagate.

A selector is one prompt's state in one method. The engine tells it of each full-attention layer in turn; it
answers what that layer keeps and, where the method cuts the sequence, which tokens go on to the deeper layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from common.skeleton.selection import Selection
from services.prefill.blocks import block_ids
from services.prefill.selectors.saliency import peak_saliency, window_saliency
from services.prefill.selectors.top import blocked, keep_top, pooled


@dataclass(frozen=True, slots=True)
class Scope:
    """What a selector knows of its prompt and model before the first layer.

    Attributes:
        num_tokens: N.
        num_layers: L.
        full_layers: the layers with full attention, ascending; only they are observed.
        device: where their tensors are.
        calibrated_pivot: L* of the model, if it was calibrated.
        block_ends: [N], bool, the tokens that end a sentence or line; None if that is not known.
    """

    num_tokens: int
    num_layers: int
    full_layers: tuple[int, ...]
    device: torch.device
    calibrated_pivot: int | None = None
    block_ends: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer's attention, as far as a selector looks at it: tokens are those that came this deep.

    Attributes:
        layer: its index.
        query: rotated, of the last tokens at least `Selector.observed_queries`, [H, observed, d]; the heads of a KV
            group are adjacent.
        key: rotated, [G, tokens, d].
        scaling: factor of the scores before the softmax.
    """

    layer: int
    query: Tensor
    key: Tensor
    scaling: float


class Decision(NamedTuple):
    """What becomes of a layer's tokens.

    Attributes:
        kept: indices of the tokens whose K/V are kept, [kept] for all KV heads or [G, kept]; None for nothing.
        going_on: indices of the tokens that go on, [tokens']; None for all of them.
    """

    kept: Tensor | None
    going_on: Tensor | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a selector judged a layer's tokens, for those who look on. Its tensors may change with the next layer.

    Attributes:
        layer: its index.
        scores: what the layer itself gives each token, [tokens], or [G, tokens] with one kept set per KV head.
        going_on: indices of the tokens that go on, [tokens']; None for all of them.
    """

    layer: int
    scores: Tensor
    going_on: Tensor | None


class Selector(ABC):
    """What the methods have in common. Each overrides the pieces in which it differs.

    Attributes:
        pivot_layer: L*, once the sequence was cut.
        on_judgement: called with every layer that was scored, before anything is left behind; None in serving.
    """

    restarts: ClassVar[bool] = False
    """Whether the tokens that go on are a new prompt, run from the first layer, instead of the deeper layers'."""

    def __init__(self, selection: Selection, scope: Scope) -> None:
        self.selection = selection
        self.scope = scope
        self.pivot_layer: int | None = None
        self.on_judgement: Callable[[Judgement], None] | None = None
        self._budgets = selection.layer_budgets(scope.num_tokens, scope.num_layers)
        self._blocks = self._find_blocks()

    @property
    def observed_queries(self) -> int:
        """How many of the last tokens' queries the method looks at."""
        return self.selection.window_tokens

    def select(self, view: LayerView) -> Decision:
        """Observe a layer; say what it keeps and who goes on."""
        scores = self.reduce(self.score(view))
        kept = self.top(self.accumulate(scores), self.budget(view.layer))
        going_on = self.propagate(view.layer, scores)
        self.tell(Judgement(view.layer, scores, going_on))
        if going_on is not None:
            self.leave_behind(going_on)
        return Decision(kept, going_on)

    def tell(self, judgement: Judgement) -> None:
        """Tell whoever looks on, if anybody does."""
        if self.on_judgement is not None:
            self.on_judgement(judgement)

    @property
    def centrality(self) -> Tensor | None:
        """What the layers so far gave the tokens that are still here, [tokens] float32; None if nothing is summed."""
        return None

    @property
    def blocks(self) -> Tensor | None:
        """Each token's sentence or line, [tokens], ascending; None if tokens are chosen one by one."""
        return self._blocks

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """Return how much each token matters to each KV group in this layer: [G, tokens], float32."""

    def reduce(self, scores: Tensor) -> Tensor:
        """Reduce scores over heads: [G, tokens] for one kept set each, [tokens] for one in all."""
        return scores if self.selection.granularity == "head" else self.over_heads(scores)

    def accumulate(self, scores: Tensor) -> Tensor:
        """Take a layer's reduced scores in; return what the layer's tokens are ranked by: of the same shape."""
        return scores

    def budget(self, layer: int) -> int:
        """Return how many tokens the layer keeps."""
        return self._budgets[layer]

    def propagate(self, layer: int, scores: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the indices of the tokens that go on to the next layer; None for all of them."""
        return None

    def leave_behind(self, going_on: Tensor) -> None:
        """Drop what is known of the tokens that do not go on."""
        if self._blocks is not None:
            self._blocks = self._blocks[going_on]

    def over_heads(self, scores: Tensor) -> Tensor:
        """Return a layer's scores [G, tokens] or [tokens] as [tokens]."""
        if scores.dim() == 1:
            return scores
        return scores.amax(dim=0) if self.selection.saliency == "peak" else scores.sum(dim=0)

    def window_saliency(self, view: LayerView) -> Tensor:
        """Return the saliency of the selection's window, peak or sum: [G, tokens]."""
        observe = peak_saliency if self.selection.saliency == "peak" else window_saliency
        return observe(view.query[:, -self.selection.window_tokens :], view.key, view.scaling)

    def top(self, scores: Tensor, tokens: int) -> Tensor:
        """Return the indices of the best tokens by pooled and blocked scores, with the sinks and the window."""
        selection = self.selection
        smooth = pooled(scores.double(), selection.pool_tokens)  # the traces on plateaus need the precision
        if self._blocks is not None:
            smooth = blocked(smooth, self._blocks, self.scope.num_tokens)
        return keep_top(smooth, tokens, sinks=selection.sink_tokens, window=selection.window_tokens)

    def _find_blocks(self) -> Tensor | None:
        if not self.selection.block_tokens:
            return None
        ends = self.scope.block_ends
        if ends is None:
            ends = torch.zeros(self.scope.num_tokens, dtype=torch.bool)
        return block_ids(ends, self.selection.block_tokens).to(self.scope.device)

    def fixed_pivot(self, share: float) -> int:
        """Return L* of a method that cuts at a fixed layer: as asked for, else the paper's share of the layers."""
        return self.selection.pivot_layer or round(share * self.scope.num_layers)


def everything(view: LayerView) -> Tensor:
    """Return the indices of all of a layer's tokens."""
    return torch.arange(view.key.shape[1], device=view.key.device)
