"""A linear layer that is quick for a few tokens on a CPU, where decoding is bound by reading the weights."""

from typing import Any

import torch
from torch import Tensor, nn

_FEW_TOKENS = 8


class FewTokensLinear(nn.Linear):
    """`nn.Linear` whose float32 product is taken the other way around, W x^T, for up to eight tokens.

    MKL reads W at the memory's speed for W x^T with two to eight columns, at a third of it for x W^T and for one
    column; so a single token is doubled. `benchmarks/RESULTS.md` has the figures.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """[..., in_features] to [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        num_tokens = rows.shape[0]
        if not 0 < num_tokens <= _FEW_TOKENS:
            return super().forward(input)
        columns = rows.expand(2, -1).contiguous().t() if num_tokens == 1 else rows.contiguous().t()
        product = torch.mm(self.weight, columns).t()[:num_tokens].contiguous()  # [tokens, out]
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def quicken(model: Any) -> None:
    """Have a float32 model on a CPU use `FewTokensLinear` for all its linear layers; others are left alone."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FewTokensLinear
