"""Linear layers in float32 on a CPU, by whatever is quickest for the number of tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_FEW_TOKENS = 8
"""Up to here a step is bound by reading the weights and by the number of calls."""
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are given the same tensor, in the order in which they are called."""


class CpuLinear(nn.Linear):
    """`nn.Linear` without MKL's weak spots. `benchmarks/RESULTS.md` has the figures.

    torch gives float32 products to MKL, which reads W at the memory's speed only for W x^T with two to four columns:
    so one token is doubled. From five tokens on oneDNN is quicker, for thousands by a tenth. Without gradients only.
    """

    shared: "_Shared | None" = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """[..., in_features] to [..., out_features]."""
        num_tokens = input.numel() // self.in_features
        if num_tokens == 0 or torch.is_grad_enabled():
            return super().forward(input)
        if self.shared is not None and num_tokens <= _FEW_TOKENS:
            product = self.shared.product(self, input)
        else:
            product = _product(self.weight, input)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def _product(weight: Tensor, input: Tensor) -> Tensor:  # noqa: A002
    """Return x W^T, [tokens, out_features]."""
    rows = input.reshape(-1, weight.shape[1])
    if rows.shape[0] == 1:
        return torch.mm(weight, torch.cat((rows, rows)).t())[:, 0].contiguous()[None]
    if rows.shape[0] <= 4:
        return torch.mm(weight, rows.contiguous().t()).t().contiguous()
    if not torch.backends.mkldnn.is_available():  # on other processors than x86 and ARM
        return torch.mm(rows, weight.t())
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, None, "none", [], "")
    return product


class _Shared:
    """Layers that are called one after the other with the same tensor: one product gives all their outputs.

    Each call of its own costs a decode step more than what it reads of the weights.
    """

    def __init__(self, layers: Sequence[CpuLinear]) -> None:
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

    def product(self, layer: CpuLinear, input: Tensor) -> Tensor:  # noqa: A002
        """Return a layer's output, [tokens, out_features]: of the product that its first sibling took."""
        if layer is self._first:
            self._input, self._outputs = input, _product(self._weight, input).split(self._sizes, dim=1)
        elif input is not self._input:
            return _product(layer.weight, input)
        return self._outputs[self._places[id(layer)]]


def quicken(model: Any) -> None:
    """Have a float32 model on a CPU use `CpuLinear` for all its linear layers; others are left alone."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = CpuLinear
    for module in list(model.modules()):
        for layers in _with_same_input(module):
            _Shared(layers)


def _with_same_input(module: nn.Module) -> Iterator[list[CpuLinear]]:
    for names in _SAME_INPUT:
        layers = [getattr(module, name, None) for name in names]
        if all(type(layer) is CpuLinear and layer.shared is None for layer in layers):
            yield layers  # type: ignore[misc]
