"""Our attention, as transformers calls it.

transformers computes rotated queries, keys and values in each architecture's own way, then calls the registered
attention function. Ours hands them to the `LayerAttention` that the caller of the layer passed along, so prefill
and decode each bring their own and no model is rewritten.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from common.errors import ModelLoadError

IMPLEMENTATION = "structkv"


class LayerAttention(Protocol):
    """Attention of one forward pass, called once per layer."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend: query [B, H, T, d], key and value [B, G, T, d] -> [B, H, T, d]."""
        ...


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    layer_attention: LayerAttention,
    scaling: float,
    **options: object,
) -> tuple[Tensor, None]:
    """Route one layer's attention; refuse what would change its result and is not known here."""
    unknown = [name for name in ("softcap", "s_aux", "head_mask", "position_bias") if options.get(name) is not None]
    if unknown:
        raise ModelLoadError(f"attention with {', '.join(unknown)} is not supported ({type(module).__name__})")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return layer_attention(layer, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, _attend)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of a sequence on itself: query [B, H, T, d], key and value [B, G, T, d]."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
