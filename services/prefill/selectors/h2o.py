"""H2O (Zhang et al., arXiv 2306.14048): the heavy hitters, tokens that draw most attention from all queries.

    score_j = sum_t sum_{h in H_g} a_{t,j}

The paper gives half the budget to the heavy hitters and half to the most recent tokens.
"""

import torch
from torch import Tensor

from services.prefill.selectors.base import LayerView, Selector
from services.prefill.selectors.saliency import attention_received


class H2O(Selector):
    """Scores a token by the attention that all later queries pay to it; recent tokens come first."""

    @property
    def observed_queries(self) -> int:
        """All of them."""
        return self.scope.num_tokens

    def score(self, view: LayerView) -> Tensor:
        """Return the attention received, and more than any for the recent half of the budget."""
        scores = attention_received(view.query, view.key, view.scaling)
        recent = self.budget(view.layer) // 2
        scores[:, scores.shape[1] - recent :] = torch.inf
        return scores
