"""GemFilter (Shi et al., arXiv 2409.17422): an early layer picks the tokens, and they are run again as the prompt.

    J = topk_j( pool( sum_h q_{N-1}^(h) . k_j^(h) ) )  at the filter layer r

The paper takes layer 13 of 32 for Llama-3.1-8B. It ranks by attention logits; their softmax over the tokens,
head by head, is what this interface has and what keeps one loud head from deciding alone.
"""

from torch import Tensor

from common.errors import InvalidRequestError
from common.skeleton.selection import Selection
from services.prefill.selectors.base import Decision, Judgement, LayerView, Scope, Selector

_FILTER_SHARE = 13 / 32


class GemFilter(Selector):
    """Keeps nothing of its first run; after the filter layer the chosen tokens start again from the bottom."""

    restarts = True

    def __init__(self, selection: Selection, scope: Scope) -> None:
        """Raise InvalidRequestError for a model that slides in every layer: none sees the whole prompt."""
        super().__init__(selection, scope)
        if not scope.full_layers:
            raise InvalidRequestError("gemfilter needs a full-attention layer", param="structkv.method")

    def select(self, view: LayerView) -> Decision:
        """Pass by the layers before the filter; there, or at the last layer that can be observed, choose."""
        if view.layer + 1 < self.fixed_pivot(_FILTER_SHARE) and view.layer < self.scope.full_layers[-1]:
            return Decision(None, None)
        self.pivot_layer = view.layer + 1
        budget = self.selection.kv_budget(self.scope.num_tokens)
        scores = self.over_heads(self.score(view))
        chosen = self.top(scores, budget)
        self.tell(Judgement(view.layer, scores, chosen))
        return Decision(None, chosen)

    def score(self, view: LayerView) -> Tensor:
        """Return the last query's attention."""
        return self.window_saliency(view)
