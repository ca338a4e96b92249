"""A decoder layer of Llama's shape, run without the modules around its products.

On a CPU, transformers takes one token through a layer's modules, decorators and dispatches in a third of the time that
its products take. `benchmarks/RESULTS.md` has the figures. Graphs do the same for a GPU.
"""

from typing import Any

import torch
from torch import Tensor, nn

from common.model.attention import LayerAttention

_OF_THIS_SHAPE = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


class DirectLayer:
    """One of transformers' layers: its own linear layers and weights, called directly."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index: int = attention.layer_idx
        self._scaling: float = attention.scaling
        self._head_dim: int = attention.head_dim
        self._before_attention = _RMSNorm(layer.input_layernorm)
        self._query, self._key, self._value = attention.q_proj, attention.k_proj, attention.v_proj
        self._query_norm, self._key_norm = _optional_norm(attention, "q_norm"), _optional_norm(attention, "k_norm")
        self._output = attention.o_proj
        self._before_mlp = _RMSNorm(layer.post_attention_layernorm)
        self._gate, self._up, self._down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._activate = mlp.act_fn

    def __call__(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        """Run the layer over hidden states [B, T, D], with rotary cosines and sines [B, T, d]."""
        hidden = hidden + self._attend(self._before_attention(hidden), rotary, attention)
        tokens = self._before_mlp(hidden)
        gated = self._activate.forward(self._gate.forward(tokens)) * self._up.forward(tokens)
        added: Tensor = self._down.forward(gated)
        return hidden + added

    def _attend(self, tokens: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        """Return what attention adds to the hidden states, [B, T, D]."""
        shape = (*tokens.shape[:2], -1, self._head_dim)
        query, key = self._query.forward(tokens).view(shape), self._key.forward(tokens).view(shape)
        value = self._value.forward(tokens).view(shape).transpose(1, 2)
        if self._query_norm is not None and self._key_norm is not None:
            query, key = self._query_norm(query), self._key_norm(key)
        cos, sin = rotary[0][:, :, None], rotary[1][:, :, None]
        query, key = _rotate(query, cos, sin).transpose(1, 2), _rotate(key, cos, sin).transpose(1, 2)
        attended = attention(self._index, query, key, value, self._scaling)
        output: Tensor = self._output.forward(attended.transpose(1, 2).reshape(*tokens.shape[:2], -1))
        return output


class _RMSNorm:
    """A model's RMSNorm, in five operations instead of eight; statistics in float32."""

    def __init__(self, norm: Any) -> None:
        self._weight: Tensor = norm.weight
        self._epsilon = torch.tensor(norm.variance_epsilon)
        self._share = 1 / norm.weight.shape[0]

    def __call__(self, tokens: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._epsilon, length, length, value=self._share).rsqrt_()
        return (tokens * scale).to(tokens.dtype).mul_(self._weight)


def _optional_norm(attention: Any, name: str) -> _RMSNorm | None:
    norm = getattr(attention, name, None)
    return None if norm is None else _RMSNorm(norm)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [B, T, H, d]: dimension i goes with i + d/2."""
    low, high = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((-high, low), dim=-1), sin)


def direct_layers(layers: nn.ModuleList, device: torch.device) -> list[DirectLayer] | None:
    """Return a model's layers to be called directly; None if they are not on a CPU, or not all of this shape."""
    if device.type != "cpu" or any(type(layer).__name__ not in _OF_THIS_SHAPE for layer in layers):
        return None
    return [DirectLayer(layer) for layer in layers]
