"""A layer that is called directly is transformers' own layer."""

import logging
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from common.model import direct_layer, elementwise
from common.model.attention import IMPLEMENTATION, causal_attention
from common.model.decoder import DecoderModel
from common.model.direct_layer import direct_layers
from tests.families import FAMILIES, tiny_model

DIRECT = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None, reason="Triton does not interpret here"
)
# The interpreter cuts float32 off to bfloat16 instead of rounding it.
KINDS = [
    pytest.param("torch", torch.float32),
    pytest.param("torch", torch.bfloat16),
    pytest.param("fused", torch.float32, marks=interpreted),
    pytest.param("fused", torch.float16, marks=interpreted),
]
GPU_KINDS = [pytest.param("cuda:0", dtype, marks=pytest.mark.gpu) for dtype in (torch.float32, torch.bfloat16)]


def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return causal_attention(query, key, value, scaling)


def compare(family: str, batch: int, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(device, dtype)
    for norm in (module for name, module in model.named_modules() if name.endswith("norm")):
        norm.weight.uniform_(0.5, 1.5)  # at first all ones, which would hide that it is left out
    for linear in (module for module in model.modules() if getattr(module, "bias", None) is not None):
        linear.bias.uniform_(-1, 1)
    model.set_attn_implementation(IMPLEMENTATION)
    layers = direct_layers(model.model.layers, device)
    assert layers is not None
    hidden = torch.randn(batch, tokens, 64, dtype=dtype, device=device) * 3
    positions = torch.arange(tokens)[None].expand(batch, -1) + torch.arange(batch)[:, None]
    types = ("full_attention",) if family == "gemma3_text" else ()
    rotary = model.model.rotary_emb(hidden, positions.to(device), *types)
    expected = model.model.layers[2](
        hidden, position_embeddings=rotary, attention_mask=None, position_ids=positions, layer_attention=attention
    )
    before = hidden.clone()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(layers[2](hidden, rotary, attention), expected, **tolerance)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize(("parts", "dtype"), KINDS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 9), (3, 1), (2, 5)])
@pytest.mark.parametrize("family", DIRECT)
@torch.inference_mode()
def test_it_computes_what_transformers_computes(
    family: str, batch: int, tokens: int, parts: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts == "fused":
        from common.model.fused import FusedElementwise

        monkeypatch.setattr(direct_layer, "elementwise_for", lambda device: FusedElementwise())
    compare(family, batch, tokens, CPU, dtype)


@pytest.mark.parametrize(("device", "dtype"), GPU_KINDS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 9), (3, 1), (2, 5)])
@pytest.mark.parametrize("family", DIRECT)
@torch.inference_mode()
def test_so_it_does_on_a_gpu(family: str, batch: int, tokens: int, device: str, dtype: torch.dtype) -> None:
    compare(family, batch, tokens, torch.device(device), dtype)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(DIRECT)))
def test_other_layers_are_left_to_transformers(family: str) -> None:
    assert direct_layers(tiny_model(family).model.layers, CPU) is None


def test_another_activation_is_left_to_transformers() -> None:
    assert direct_layers(tiny_model("llama", hidden_act="relu").model.layers, CPU) is None


def test_without_triton_a_gpu_takes_transformers_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_layer, "find_spec", lambda name: None)
    assert direct_layers(tiny_model("llama").model.layers, torch.device("cuda:0")) is None


def test_a_gpu_that_triton_cannot_reach_takes_transformers_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_layer.triton_driver, "prepare", lambda: False)
    assert direct_layers(tiny_model("llama").model.layers, torch.device("cuda:0")) is None


def test_a_layer_that_has_come_to_differ_is_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elementwise, "_rotate", lambda heads, cos, sin: heads)
    with caplog.at_level(logging.WARNING):
        DecoderModel(tiny_model("llama"), "fingerprint")  # raises if it is not faithful after all
    assert [record.message for record in caplog.records] == ["layers are called through transformers"]
