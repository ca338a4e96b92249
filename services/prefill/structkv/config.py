"""What StructKV can be told about a model; the paper's values are the defaults where it names one."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StructKVConfig:
    """The method's parameters, apart from the budgets, which each request brings.

    Attributes:
        decay: lambda of Global In-Degree Centrality.
        pivot_weights: (w1, w2, w3), the weights of entropy, sparsity and variance in T_l.
        pivot_band: share of the layers, from and to, in which the pivot is looked for.
        pivot_patience: layers after a maximum of T_l until it is believed.
        pivot_layer: L* itself where it is known for the model; detected online if None.
        pool_tokens: width of the max pooling that smooths saliency along the tokens; 1 is none. The paper
            names none, but names and numbers break apart without it.
        granularity: one kept set per KV head ("head"), or one per layer as in the paper ("layer").
        normalise: weigh every layer's saliency alike in the centrality, by its sum.
    """

    decay: float = 0.9
    pivot_weights: tuple[float, float, float] = (0.2, 0.3, 0.5)
    pivot_band: tuple[float, float] = (0.3, 0.7)
    pivot_patience: int = 3
    pivot_layer: int | None = None
    pool_tokens: int = 15
    granularity: Literal["head", "layer"] = "head"
    normalise: bool = True
