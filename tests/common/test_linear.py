"""The linear layer for few tokens is a linear layer."""

import pytest
import torch
from torch import nn

from common.model.linear import FewTokensLinear, quicken


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (8,), (9,), (1, 1), (3, 1), (2, 4), (5, 7), (0, 3)])
def test_the_product_is_the_same(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias)
    tokens = torch.randn(*shape, 24)
    with torch.inference_mode():
        expected = layer(tokens)
        quicken(layer)
        assert type(layer) is FewTokensLinear
        output = layer(tokens)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous()


def test_tokens_need_not_be_contiguous() -> None:
    layer, tokens = nn.Linear(24, 40), torch.randn(24, 4).t()
    expected = layer(tokens)
    quicken(layer)
    torch.testing.assert_close(layer(tokens), expected)


def test_other_precisions_and_kinds_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    layers = nn.ModuleList([nn.Linear(4, 4, dtype=torch.bfloat16), Special(4, 4)])
    quicken(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, Special]
