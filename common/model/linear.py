"""Linear layers that are quick for a few tokens on a CPU, where decoding is bound by reading the weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_FEW_TOKENS = 8
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are given the same tensor, in the order in which they are called."""


class FewTokensLinear(nn.Linear):
    """`nn.Linear` whose float32 product is taken the other way around, W x^T, for up to eight tokens.

    MKL reads W at the memory's speed for W x^T with two to eight columns, at a third of it for x W^T and for one
    column; so a single token is doubled. `benchmarks/RESULTS.md` has the figures.
    """

    shared: "_Shared | None" = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """[..., in_features] to [..., out_features]."""
        num_tokens = input.numel() // self.in_features
        if not 0 < num_tokens <= _FEW_TOKENS:
            return super().forward(input)
        product = _product(self.weight, input) if self.shared is None else self.shared.product(self, input)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def _product(weight: Tensor, input: Tensor) -> Tensor:  # noqa: A002
    """Return x W^T, [tokens, out_features], for a few tokens."""
    rows = input.reshape(-1, weight.shape[1])
    if rows.shape[0] == 1:
        return torch.mm(weight, torch.cat((rows, rows)).t())[:, 0].contiguous()[None]
    return torch.mm(weight, rows.contiguous().t()).t().contiguous()


class _Shared:
    """Layers that are called one after the other with the same tensor: one product gives all their outputs.

    Each call of its own costs a decode step more than what it reads of the weights.
    """

    def __init__(self, layers: Sequence[FewTokensLinear]) -> None:
        """Join the layers' weights; theirs become views of the whole."""
        self._weight = torch.cat([layer.weight.data for layer in layers])
        self._sizes = [layer.out_features for layer in layers]
        self._first = layers[0]
        self._places = {id(layer): place for place, layer in enumerate(layers)}
        for layer, part in zip(layers, self._weight.split(self._sizes), strict=True):
            layer.weight.data = part
            layer.shared = self
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def product(self, layer: FewTokensLinear, input: Tensor) -> Tensor:  # noqa: A002
        """Return a layer's output, [tokens, out_features]: of the product that its first sibling took."""
        if layer is self._first:
            self._input, self._outputs = input, _product(self._weight, input).split(self._sizes, dim=1)
        elif input is not self._input:
            return _product(layer.weight, input)
        return self._outputs[self._places[id(layer)]]


def quicken(model: Any) -> None:
    """Have a float32 model on a CPU use `FewTokensLinear` for all its linear layers; others are left alone."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FewTokensLinear
    for module in list(model.modules()):
        for layers in _with_same_input(module):
            _Shared(layers)


def _with_same_input(module: nn.Module) -> Iterator[list[FewTokensLinear]]:
    for names in _SAME_INPUT:
        layers = [getattr(module, name, None) for name in names]
        if all(type(layer) is FewTokensLinear and layer.shared is None for layer in layers):
            yield layers  # type: ignore[misc]
