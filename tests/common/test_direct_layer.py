"""A layer that is called directly is transformers' own layer."""

import logging

import pytest
import torch
from torch import Tensor

from common.model import direct_layer
from common.model.attention import IMPLEMENTATION, causal_attention
from common.model.decoder import DecoderModel
from common.model.direct_layer import direct_layers
from tests.families import FAMILIES, tiny_model

DIRECT = ("llama", "mistral", "qwen2", "qwen3")
CPU = torch.device("cpu")


def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return causal_attention(query, key, value, scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 9), (3, 1), (2, 5)])
@pytest.mark.parametrize("family", DIRECT)
@torch.inference_mode()
def test_it_computes_what_transformers_computes(family: str, batch: int, tokens: int, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    for norm in (module for name, module in model.named_modules() if name.endswith("norm")):
        norm.weight.uniform_(0.5, 1.5)  # at first all ones, which would hide that it is left out
    model.set_attn_implementation(IMPLEMENTATION)
    layers = direct_layers(model.model.layers, CPU)
    assert layers is not None
    hidden = torch.randn(batch, tokens, 64, dtype=dtype) * 3
    positions = torch.arange(tokens)[None].expand(batch, -1) + torch.arange(batch)[:, None]
    rotary = model.model.rotary_emb(hidden, positions)
    expected = model.model.layers[2](
        hidden, position_embeddings=rotary, attention_mask=None, position_ids=positions, layer_attention=attention
    )
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(layers[2](hidden, rotary, attention), expected, **tolerance)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(DIRECT)))
def test_other_layers_are_left_to_transformers(family: str) -> None:
    assert direct_layers(tiny_model(family).model.layers, CPU) is None


def test_only_a_cpu_gains_by_it() -> None:
    assert direct_layers(tiny_model("llama").model.layers, torch.device("cuda:0")) is None


def test_a_layer_that_has_come_to_differ_is_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_layer, "_rotate", lambda heads, cos, sin: heads)
    with caplog.at_level(logging.WARNING):
        DecoderModel(tiny_model("llama"), "fingerprint")  # raises if it is not faithful after all
    assert [record.message for record in caplog.records] == ["layers are called through transformers"]
