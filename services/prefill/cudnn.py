"""cuDNN's attention: the quickest on Hopper and Blackwell, but it plans for 0.1 to 0.9 s at each new shape."""

import logging

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from common.model.decoder import ModelSpec
from services.prefill.tiles import PAST_CHUNKS, Tiles

_QUICKEST_ON = (9, 10)
"""Major numbers of compute capabilities: Hopper and Blackwell."""

logger = logging.getLogger(__name__)


def cudnn(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attend by cuDNN: a `Kernel` of tiles."""
    # cuDNN plans for strides as well, and those of a part of a prompt's keys grow with the prompt. `contiguous` would
    # leave those of a single KV head as they are. The copy takes half a percent of the tile's time.
    key, value = (x.clone(memory_format=torch.contiguous_format) for x in (key, value))
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scaling
    )
    return output, logsumexp.reshape(*query.shape[:3], 1)  # the last dimension is there in some versions of torch


def tiles_for(spec: ModelSpec, device: torch.device, chunk_tokens: int) -> Tiles | None:
    """Return tiles for a model's full chunks, planned for; None where cuDNN is no quicker, or cannot do it.

    Plans are the calling thread's, so it should be the one that computes.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in _QUICKEST_ON:
        return None
    # As a model's projections lie, and no memory of its own for what is only looked at.
    query = torch.zeros(1, chunk_tokens, spec.num_heads, spec.head_dim, dtype=spec.dtype, device=device).transpose(1, 2)
    key = query[:, : spec.num_kv_heads, :1].expand(-1, -1, (sum(PAST_CHUNKS) + 1) * chunk_tokens, -1)
    if not _is_able(query, key):
        return None
    tiles = Tiles(cudnn, chunk_tokens)
    try:
        tiles(query, key, key, 1.0)  # one tile of each shape
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        logger.warning("cuDNN cannot attend, FlashAttention does", extra={"error": str(error)})
        return None
    return tiles


def _is_able(query: Tensor, key: Tensor) -> bool:
    """Ask torch whether cuDNN can, as if torch might choose it: else it says no."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        return can_use_cudnn_attention(SDPAParams(query, key, key, None, 0.0, False, True))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
