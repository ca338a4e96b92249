"""Our attention, as transformers calls it.

transformers computes rotated queries, keys and values in each architecture's own way, then calls the registered
attention function. Ours hands them to the `LayerAttention` that the caller of the layer passed along, so prefill
and decode each bring their own and no model is rewritten.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from common.errors import ModelLoadError
from common.model.positions import Positions
from common.model.sliding_attention import sliding_attention

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


def sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Positions, window: int | None, scaling: float
) -> Tensor:
    """Attend with a sequence's last queries [1, H, T, d] to its keys and values [1, G, N, d] -> [1, H, T, d].

    The first N of `positions` are the keys'; a `window` counts in them: the query at p sees keys at
    p - window + 1 .. p.
    """
    if window is None or positions.span(key.shape[2]) <= window:
        return causal_attention(query, key, value, scaling)
    return sliding_attention(query, key, value, positions, window, scaling)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of a sequence's last T tokens: query [B, H, T, d], key and value [B, G, P + T, d] -> [B, H, T, d].

    Each query sees the P tokens before the T, and those of the T up to its own.
    """
    num_queries, num_past = query.shape[2], key.shape[2] - query.shape[2]
    if num_past == 0 or num_queries == 1:
        return scaled_dot_product_attention(query, key, value, is_causal=num_past == 0, scale=scaling, enable_gqa=True)
    if query.device.type == "cpu":
        return _causal_attention_cpu(query, key, value, scaling)
    bias = causal_lower_right(num_queries, num_past + num_queries)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True)


def _causal_attention_cpu(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend to the past and to the queries' own tokens apart, and weigh the two by their softmax denominators.

    The CPU's fused kernel aligns its causal mask with the first key. A mask that says otherwise would be
    materialised, and what it hides computed all the same.
    """
    past = key.shape[2] - query.shape[2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    far, far_logsumexp = flash(query, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scaling)
    near, near_logsumexp = flash(query, key[:, :, past:], value[:, :, past:], 0.0, True, scale=scaling)
    share = torch.sigmoid(near_logsumexp - far_logsumexp)[..., None]
    merged: Tensor = torch.lerp(far.float(), near.float(), share)
    return merged.to(query.dtype)
