import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.flops import LayerShape, largest_speedup, layer_flops

SHAPE = LayerShape(linear_parameters=1000, num_heads=2, head_dim=5)


def test_layer_flops_by_hand() -> None:
    # 2 * 100 * 1000 for the linear maps, 2 * 100^2 * 2 * 5 for causal attention
    assert layer_flops(SHAPE, 100) == 200_000 + 200_000


def test_largest_speedup_by_hand() -> None:
    # full: 10 layers of 400,000. Cut: 4 of them, and 6 of 2 * 20 * 1000 + 2 * 20^2 * 10 = 48,000.
    speedup = largest_speedup(SHAPE, num_layers=10, tokens=100, pivot_layer=4, struct_tokens=20)
    assert speedup == pytest.approx(4_000_000 / (1_600_000 + 288_000))


def test_no_cut_gains_nothing() -> None:
    assert largest_speedup(SHAPE, num_layers=10, tokens=100, pivot_layer=None, struct_tokens=20) == 1.0


def test_shape_of_a_model_counts_its_linear_maps_only() -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    shape = LayerShape.of(LlamaForCausalLM(config))
    # query and output 32 * 32, key and value 32 * 16, three of the MLP 32 * 48; norms are not counted
    assert shape == LayerShape(2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, num_heads=4, head_dim=8)
