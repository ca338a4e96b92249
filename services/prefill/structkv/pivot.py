"""Dynamic Pivot Detection: the layer where attention settles, `L* = argmax_l T_l + 1`.

L* counts the layers that see the whole prompt.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHTS = (0.2, 0.3, 0.5)
"""(w1, w2, w3) of entropy, sparsity and variance, the paper's."""
BAND = (0.3, 0.7)
"""Share of the layers, from and to, in which the pivot is looked for: every pivot of the paper lies in it."""
PATIENCE = 3
"""Layers without a larger T_l until an online maximum is believed."""


class LayerMetrics(NamedTuple):
    """Shape of one layer's saliency, taken as a distribution over the scored tokens."""

    entropy: float
    sparsity: float
    variance: float


def layer_metrics(saliency: Tensor, struct_retention: float) -> LayerMetrics:
    """Return `H_l`, `rho_l` and `V_l` of S [tokens].

    `p = S / sum S`; `H = -sum p ln p` in nats; `rho` is the mass of the ceil(R_struct * tokens) largest p;
    `V` is the population variance of p * tokens, whose mean is 1.
    """
    share = saliency / saliency.sum().clamp_min(1e-20)
    entropy = torch.special.entr(share).sum()
    top = math.ceil(struct_retention * share.shape[0])
    sparsity = share.topk(top).values.sum()
    scaled = share * share.shape[0]
    variance = (scaled - scaled.mean()).square().sum() / max(1, share.shape[0])  # 0 if nothing is left to score
    return LayerMetrics(*torch.stack((entropy, sparsity, variance)).tolist())


def transition_scores(metrics: Sequence[LayerMetrics], weights: tuple[float, float, float] = WEIGHTS) -> list[float]:
    """Return `T_l = w1 grad(-H_l) + w2 grad(rho_l) + w3 grad(V_l)` for the second and later of some layers.

    A gradient is the difference to the layer before, min-max normalised over the layers given.
    """
    columns = torch.tensor([(-m.entropy, m.sparsity, m.variance) for m in metrics], dtype=torch.float64)
    gradient = columns.diff(dim=0)
    low, high = gradient.amin(dim=0), gradient.amax(dim=0)
    normalised = (gradient - low) / (high - low).clamp_min(1e-20)
    scores: list[float] = (normalised @ torch.tensor(weights, dtype=torch.float64)).tolist()
    return scores


def band_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Return those of the layers that can be the pivot's."""
    return [layer for layer in layers if BAND[0] * num_layers <= layer < BAND[1] * num_layers]


class PivotDetector:
    """Finds L* while the layers run: the largest T_l so far, believed after some layers without a larger one.

    Only layers inside the band can be the pivot; at its end the largest is taken as it stands. With the pivot
    known beforehand, nothing is detected.

    Attributes:
        observed: the metrics of each layer watched so far, ascending.
    """

    def __init__(self, layers: Sequence[int], num_layers: int, *, known: int | None, patience: int = PATIENCE) -> None:
        """Take the layers that will be observed, ascending: those with full attention."""
        self._patience = patience
        self._known = known
        self._band = band_layers(layers, num_layers)
        before = [layer for layer in layers if self._band and layer < self._band[0]]
        self._reference = before[-1] if before else None  # the first gradient's other end
        self.observed: dict[int, LayerMetrics] = {}

    def watches(self, layer: int) -> bool:
        """Tell whether the layer's metrics are wanted."""
        return self._known is None and (layer in self._band or layer == self._reference)

    def settled(self, layer: int, metrics: LayerMetrics | None) -> bool:
        """Take the layer that just ran, with its metrics if watched; tell whether the sequence may shrink."""
        if self._known is not None:
            return layer + 1 >= self._known
        if metrics is not None:
            self.observed[layer] = metrics
        if layer not in self._band:
            return False
        if layer == self._band[-1]:
            return True
        if len(self.observed) < 2:
            return False
        scores = transition_scores(list(self.observed.values()))
        largest = max(range(len(scores)), key=scores.__getitem__)
        return len(scores) - 1 - largest >= self._patience
