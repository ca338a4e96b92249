"""StructKV as a whole: told of each layer, it says what that layer keeps and who goes on."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from services.prefill.structkv.centrality import Centrality
from services.prefill.structkv.config import StructKVConfig
from services.prefill.structkv.pivot import PivotDetector, layer_metrics
from services.prefill.structkv.saliency import window_saliency
from services.prefill.structkv.selection import keep_top, pooled


class Budget(NamedTuple):
    """A request's token counts, already worked out from N and its rates."""

    kv_tokens: int
    struct_tokens: int
    struct_retention: float
    window: int
    sinks: int


class StructKV:
    """The state of one prompt on its way through the layers."""

    def __init__(self, config: StructKVConfig, budget: Budget, *, full_layers: Sequence[int], num_layers: int) -> None:
        """Take the model's full-attention layers: only they are observed."""
        self._config = config
        self._budget = budget
        self._centrality = Centrality(config.decay)
        self._pivot = PivotDetector(
            full_layers,
            num_layers,
            weights=config.pivot_weights,
            band=config.pivot_band,
            patience=config.pivot_patience,
            known=config.pivot_layer,
        )
        self.pivot_layer: int | None = None

    def keep(self, layer: int, window_query: Tensor, key: Tensor, scaling: float) -> tuple[Tensor, Tensor | None]:
        """Observe a full-attention layer: its window's queries [H, w, d] and all its keys [G, tokens, d].

        Returns:
            The indices of the kept tokens, [kept] for all KV heads or [G, kept], and the indices of the
            tokens that go on, [struct], if this is the layer after which the sequence shrinks.
        """
        saliency = window_saliency(window_query, key, scaling)  # [G, tokens]
        total = saliency.sum(dim=0)  # S_j^(l), [tokens]
        scores = saliency if self._config.granularity == "head" else total
        kept = self._top(scores, self._budget.kv_tokens)
        if self.pivot_layer is not None:
            return kept, None
        return kept, self._structural_skeleton(layer, total)

    def _structural_skeleton(self, layer: int, saliency: Tensor) -> Tensor | None:
        scored = saliency[self._budget.sinks : saliency.shape[0] - self._budget.window]
        self._centrality.add(saliency / scored.sum() if self._config.normalise else saliency)
        watched = self._pivot.watches(layer)
        metrics = layer_metrics(scored, self._budget.struct_retention) if watched else None
        if not self._pivot.settled(layer, metrics):
            return None
        self.pivot_layer = layer + 1
        return self._top(self._centrality.value, self._budget.struct_tokens)

    def _top(self, scores: Tensor, tokens: int) -> Tensor:
        smooth = pooled(scores, self._config.pool_tokens)
        return keep_top(smooth, tokens, sinks=self._budget.sinks, window=self._budget.window)
