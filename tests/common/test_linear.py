"""The CPU's linear layer is a linear layer."""

import pytest
import torch
from torch import nn

from common.model.linear import CpuLinear, quicken


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (8,), (9,), (700,), (1, 1), (3, 1), (2, 4), (5, 7), (0, 3)])
def test_the_product_is_the_same(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias)
    tokens = torch.randn(*shape, 24)
    with torch.inference_mode():
        expected = layer(tokens)
        quicken(layer)
        assert type(layer) is CpuLinear
        output = layer(tokens)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous()


def test_tokens_need_not_be_contiguous() -> None:
    layer, tokens = nn.Linear(24, 40), torch.randn(24, 4).t()
    with torch.inference_mode():
        expected = layer(tokens)
        quicken(layer)
        torch.testing.assert_close(layer(tokens), expected)


def test_gradients_take_the_usual_way() -> None:
    layer, tokens = nn.Linear(24, 40), torch.randn(4, 24, requires_grad=True)
    quicken(layer)
    layer(tokens).sum().backward()
    torch.testing.assert_close(tokens.grad, layer.weight.sum(dim=0).expand(4, -1))


def test_other_precisions_and_kinds_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    layers = nn.ModuleList([nn.Linear(4, 4, dtype=torch.bfloat16), Special(4, 4)])
    quicken(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, Special]


class Projections(nn.Module):
    """Like an attention's: three layers that are given the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(24, 40), nn.Linear(24, 8), nn.Linear(24, 8, bias=False)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        return [self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)]


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (1, 9)])
def test_layers_with_the_same_input_give_what_they_gave_alone(shape: tuple[int, ...]) -> None:
    module = Projections()
    with torch.inference_mode():
        for _ in range(3):
            tokens = torch.randn(*shape, 24)
            expected = module(tokens)
            quicken(module)
            for output, wanted in zip(module(tokens), expected, strict=True):
                torch.testing.assert_close(output, wanted)


def test_a_layer_given_something_else_does_not_answer_for_its_siblings_input() -> None:
    module, tokens, others = Projections(), torch.randn(1, 24), torch.randn(1, 24)
    with torch.inference_mode():
        expected = module.k_proj(others)
        quicken(module)
        module.q_proj(tokens)
        torch.testing.assert_close(module.k_proj(others), expected)


def test_joined_weights_take_no_memory_of_their_own() -> None:
    module = Projections()
    quicken(module)
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (module.q_proj, module.k_proj, module.v_proj)}
    assert len(storages) == 1
