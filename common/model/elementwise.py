"""What a decoder layer computes between its products: norms, rotary embeddings and gates, by torch's own operations.

`FusedElementwise` has kernels for the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {"SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu_tanh"}
_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """What is known of a model's RMSNorm.

    Attributes:
        weight: [D].
        epsilon: added to the mean square; float32, one number, on the host.
        from_one: Gemma's factors are 1 + weight, in float32; others' are the weight, in the tokens' type.
    """

    weight: Tensor
    epsilon: Tensor
    from_one: bool

    @classmethod
    def of(cls, norm: Any) -> "RMSNorm":
        """Read a transformers module."""
        if type(norm).__name__.startswith("Gemma"):
            return cls(norm.weight, torch.tensor(norm.eps), True)
        return cls(norm.weight, torch.tensor(norm.variance_epsilon), False)


class Elementwise(Protocol):
    """Everything in a layer that is neither a product nor attention. Nothing is computed in place."""

    def norm(self, tokens: Tensor, norm: RMSNorm) -> Tensor:
        """Normalise [..., D]."""
        ...

    def add_norm(self, hidden: Tensor, delta: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """Return the sum of [..., D] and [..., D], and that normalised."""
        ...

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate query [B, T, H, d] and key [B, T, G, d] by cosines and sines [B, T, d]."""
        ...

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """Return activation(gate) * up, all [B, T, I]."""
        ...


class TorchElementwise:
    """By torch's operations, as few as may be."""

    def norm(self, tokens: Tensor, norm: RMSNorm) -> Tensor:
        """In five operations instead of eight; statistics in float32."""
        length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(norm.epsilon, length, length, value=1 / norm.weight.shape[0]).rsqrt_()
        if norm.from_one:
            return (tokens * scale * (1.0 + norm.weight.float())).to(tokens.dtype)
        return (tokens * scale).to(tokens.dtype).mul_(norm.weight)

    def add_norm(self, hidden: Tensor, delta: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """One after the other."""
        summed = hidden + delta
        return summed, self.norm(summed, norm)

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """One after the other."""
        cos, sin = cos[:, :, None], sin[:, :, None]
        return _rotate(query, cos, sin), _rotate(key, cos, sin)

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """One after the other."""
        return _FUNCTIONS[activation](gate) * up


def activation_of(function: Any) -> Activation | None:
    """Return which one a transformers module is; None if it is another."""
    return _ACTIVATIONS.get(type(function).__name__)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [B, T, H, d]: dimension i goes with i + d/2."""
    low, high = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((-high, low), dim=-1), sin)
