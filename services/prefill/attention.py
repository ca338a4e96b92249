"""Causal attention of a whole sequence, full or within a sliding window, without an N x N mask."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common.model.attention import causal_attention


def sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int | None, scaling: float
) -> Tensor:
    """Attend query [1, H, N, d] to key and value [1, G, N, d] -> [1, H, N, d].

    `positions` [N] ascend but may have gaps, where tokens were left behind at the pivot; a `window` counts in
    them: the query at p sees keys at p - window + 1 .. p.
    """
    if window is None or positions[-1] - positions[0] < window:
        return causal_attention(query, key, value, scaling)
    return _sliding_attention(query, key, value, positions, window, scaling)


def _sliding_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int, scaling: float
) -> Tensor:
    """Attend block by block, each block of queries to the keys that its window reaches."""
    num_tokens, output = positions.shape[0], torch.empty_like(query)
    # First key in reach of each query; positions ascend, so a block's reach starts with its first query's.
    reach = torch.searchsorted(positions, positions - window + 1)
    for start in range(0, num_tokens, window):
        end = min(start + window, num_tokens)
        first = int(reach[start])
        indices = torch.arange(first, end, device=positions.device)
        queries = torch.arange(start, end, device=positions.device)[:, None]
        mask = (indices <= queries) & (indices >= reach[start:end, None])  # [block, keys]
        output[:, :, start:end] = scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, first:end],
            value[:, :, first:end],
            attn_mask=mask,
            scale=scaling,
            enable_gqa=True,
        )
    return output
