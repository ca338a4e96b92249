"""A decoder layer of Llama's or Gemma's shape, run without the modules around its products.

On a CPU, transformers takes one token through a layer's modules, decorators and dispatches in a third of the time that
its products take. `benchmarks/RESULTS.md` has the figures. On a GPU, graphs take the calls away, but not the many small
kernels behind them: there each part between the products is one kernel of ours.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from common.model import triton_driver
from common.model.attention import LayerAttention
from common.model.elementwise import Activation, Elementwise, RMSNorm, TorchElementwise, activation_of

_OF_THIS_SHAPE = (
    "Gemma3DecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
)


class DirectLayer:
    """One of transformers' layers: its own linear layers and weights, called directly."""

    def __init__(self, layer: Any, activation: Activation, elementwise: Elementwise) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._elementwise = elementwise
        self._index: int = attention.layer_idx
        self._scaling: float = attention.scaling
        self._head_dim: int = attention.head_dim
        self._before_attention = RMSNorm.of(layer.input_layernorm)
        self._query, self._key, self._value = attention.q_proj, attention.k_proj, attention.v_proj
        self._query_norm, self._key_norm = _optional_norm(attention, "q_norm"), _optional_norm(attention, "k_norm")
        self._output = attention.o_proj
        # What is called "post attention" stands before the MLP, but where there is one that is called so.
        self._before_mlp = _optional_norm(layer, "pre_feedforward_layernorm")
        self._after_attention: RMSNorm | None = RMSNorm.of(layer.post_attention_layernorm)
        if self._before_mlp is None:
            self._before_mlp, self._after_attention = self._after_attention, None
        self._after_mlp = _optional_norm(layer, "post_feedforward_layernorm")
        self._gate, self._up, self._down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._activation = activation

    def __call__(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        """Run the layer over hidden states [B, T, D], with rotary cosines and sines [B, T, d]."""
        elementwise = self._elementwise
        added = self._attend(elementwise.norm(hidden, self._before_attention), rotary, attention)
        if self._after_attention is not None:
            added = elementwise.norm(added, self._after_attention)
        assert self._before_mlp is not None
        hidden, tokens = elementwise.add_norm(hidden, added, self._before_mlp)
        gated = elementwise.gate(self._gate.forward(tokens), self._up.forward(tokens), self._activation)
        added = self._down.forward(gated)
        if self._after_mlp is not None:
            added = elementwise.norm(added, self._after_mlp)
        return hidden + added

    def _attend(self, tokens: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        """Return what attention adds to the hidden states, [B, T, D]."""
        shape = (*tokens.shape[:2], -1, self._head_dim)
        query, key = self._query.forward(tokens).view(shape), self._key.forward(tokens).view(shape)
        value = self._value.forward(tokens).view(shape).transpose(1, 2)
        if self._query_norm is not None and self._key_norm is not None:
            query = self._elementwise.norm(query, self._query_norm)
            key = self._elementwise.norm(key, self._key_norm)
        query, key = self._elementwise.rotate(query, key, *rotary)
        attended = attention(self._index, query.transpose(1, 2), key.transpose(1, 2), value, self._scaling)
        output: Tensor = self._output.forward(attended.transpose(1, 2).reshape(*tokens.shape[:2], -1))
        return output


def _optional_norm(module: Any, name: str) -> RMSNorm | None:
    norm = getattr(module, name, None)
    return None if norm is None else RMSNorm.of(norm)


def direct_layers(layers: nn.ModuleList, device: torch.device) -> list[DirectLayer] | None:
    """Return a model's layers to be called directly; None if not all are of this shape, or nothing is gained."""
    elementwise = elementwise_for(device)
    if elementwise is None or any(type(layer).__name__ not in _OF_THIS_SHAPE for layer in layers):
        return None
    direct = []
    for layer in layers:
        if (activation := activation_of(layer.mlp.act_fn)) is None:  # type: ignore[union-attr]
            return None
        direct.append(DirectLayer(layer, activation, elementwise))
    return direct


def elementwise_for(device: torch.device) -> Elementwise | None:
    """Return what is quickest on a device; None for transformers' own."""
    if device.type == "cpu":
        return TorchElementwise()
    if device.type != "cuda" or find_spec("triton") is None or not triton_driver.prepare():
        return None
    # Not at the top: Triton is there with CUDA builds of torch only.
    from common.model.fused import FusedElementwise  # noqa: PLC0415

    return FusedElementwise()
