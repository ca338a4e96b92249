"""Causal attention within a sliding window: the query at p sees the keys at p - window + 1 .. p."""

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.functional import scaled_dot_product_attention

from common.model.positions import Positions


def sliding_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Positions, window: int, scaling: float
) -> Tensor:
    """Attend with a sequence's last queries [1, H, T, d] to its keys and values [1, G, N, d] -> [1, H, T, d].

    The first N of `positions` are the keys'.
    """
    num_tokens = key.shape[2]
    if positions.span(num_tokens) == num_tokens and _flash_can(query, key, value):
        return _by_flash(query, key, value, window, scaling)
    return _in_blocks(query, key, value, positions, window, scaling)


def _flash_can(query: Tensor, key: Tensor, value: Tensor) -> bool:
    params = SDPAParams(query, key, value, None, 0.0, False, True)
    return query.is_cuda and query.shape[3] % 8 == 0 and can_use_flash_attention(params)


def _by_flash(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float) -> Tensor:
    """Attend where positions have no gaps, by FlashAttention: it counts a window in tokens, from the last key."""
    num_queries = query.shape[2]
    seen = min(key.shape[2], num_queries + window - 1)
    heads_last = (query, key[:, :, -seen:], value[:, :, -seen:])
    output, *_ = torch.ops.aten._flash_attention_forward(
        *(x.transpose(1, 2) for x in heads_last),
        None,
        None,
        num_queries,
        seen,
        0.0,
        True,
        False,
        scale=scaling,
        window_size_left=window - 1,
        window_size_right=0,
    )
    attended: Tensor = output.transpose(1, 2)
    return attended


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, positions: Positions, window: int, scaling: float) -> Tensor:
    """Attend block by block, each block of queries to the keys that its window reaches: no N x N mask."""
    num_tokens, output = key.shape[2], torch.empty_like(query)
    offset = num_tokens - query.shape[2]
    # First key in reach of each query; positions ascend, so a block's reach starts with its first query's.
    reach = _reach(positions.on_device[:num_tokens], window, offset, 1)
    firsts = _reach(positions.on_host[:num_tokens], window, offset, window).tolist()
    for start, first in zip(range(offset, num_tokens, window), firsts, strict=True):
        end = min(start + window, num_tokens)
        indices = torch.arange(first, end, device=query.device)
        queries = torch.arange(start, end, device=query.device)[:, None]
        block = slice(start - offset, end - offset)
        mask = (indices <= queries) & (indices >= reach[block, None])  # [block, keys]
        output[:, :, block] = _masked(query[:, :, block], key[:, :, first:end], value[:, :, first:end], mask, scaling)
    return output


def _reach(positions: Tensor, window: int, offset: int, step: int) -> Tensor:
    """Return the index of the first key that each `step`-th query from `offset` on sees."""
    return torch.searchsorted(positions, positions[offset::step] - window + 1)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attend with queries [1, H, block, d] to keys and values [1, G, keys, d] under a mask [block, keys]."""
    if query.device.type != "cpu":  # the fused kernel there that takes a mask takes no groups
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)
