"""StructKV as a whole: saliency and centrality choose what is kept, centrality who goes on from the pivot."""

from torch import Tensor

from common.skeleton.selection import Selection
from services.prefill.selectors.base import LayerView, Scope, Selector
from services.prefill.structkv.centrality import Centrality
from services.prefill.structkv.pivot import PivotDetector, layer_metrics


class StructKV(Selector):
    """Structural Propagation and Decoupling: two sets with two budgets, at every layer and at the pivot.

    I_KV^(l) = topk(R^(l), N * R_KV) U I_win        every layer
    I_struct = topk(C, N * R_struct) U I_win        after layer L* - 1, once

    In the paper a layer ranks by its own saliency, R = S^(l). By default R = C, the centrality so far: the few
    layers whose heads retrieve speak for those that do not, during the prompt, but may need the tokens later. C goes
    on growing after the pivot, over the tokens that went on: some layers there retrieve, too.
    """

    def __init__(self, selection: Selection, scope: Scope) -> None:
        super().__init__(selection, scope)
        known = selection.pivot_layer or (scope.calibrated_pivot if selection.pivot == "calibrated" else None)
        self._centrality = Centrality(selection.decay)
        self.pivot = PivotDetector(scope.full_layers, scope.num_layers, known=known)

    @property
    def centrality(self) -> Tensor:
        """C so far, over heads: [tokens]."""
        return self.over_heads(self._centrality.value)

    def score(self, view: LayerView) -> Tensor:
        """Return the saliency by KV group."""
        return self.window_saliency(view)

    def accumulate(self, scores: Tensor) -> Tensor:
        """Add the layer to the centrality; return what the layer ranks by."""
        self._centrality.add(scores)
        return self._centrality.value if self.selection.ranked_by == "centrality" else scores

    def propagate(self, layer: int, scores: Tensor) -> Tensor | None:
        """Let the structural skeleton go on, once the pivot is known to be passed."""
        if self.pivot_layer is not None or not self._is_past_pivot(layer, scores):
            return None
        self.pivot_layer = layer + 1
        return self.top(self.centrality, self.selection.struct_budget(self.scope.num_tokens))

    def leave_behind(self, going_on: Tensor) -> None:
        """Drop the centrality of the tokens that do not go on."""
        super().leave_behind(going_on)
        self._centrality.leave_behind(going_on)

    def _is_past_pivot(self, layer: int, scores: Tensor) -> bool:
        metrics = None
        if self.pivot.watches(layer):
            # Without what is kept anyway: the sinks alone would decide the metrics.
            scored = slice(self.selection.sink_tokens, self.scope.num_tokens - self.selection.window_tokens)
            metrics = layer_metrics(self.over_heads(scores)[scored], self.selection.struct_retention)
        return self.pivot.settled(layer, metrics)
