"""Saliency: the attention that queries pay to each token."""

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_QUERIES = 128


def window_saliency(window_query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the last w queries' saliency by KV group: `S_j = 1/w * sum_{t in last w} sum_{h in H_g} a_{t,j}^(l,h)`.

    StructKV's formula sums over g too, which is left to the caller, who may want one set per group. The product
    is grouped: keys are never repeated per query head, and only [H/G * 128, N] scores exist at a time.

    Args:
        window_query: rotated queries of the last w tokens, [H, w, d]; heads of a group are adjacent.
        key: rotated keys of all tokens, [G, N, d].
        scaling: factor of the scores before the softmax.

    Returns:
        [G, N], float32. Each row sums to H/G.
    """
    total = _zeros(key)
    for group, seen, attention in _in_parts(window_query, key, scaling):
        total[group, :seen] += attention.sum(dim=(0, 1, 2))
    return total.div_(window_query.shape[1])


def peak_saliency(window_query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the last w queries' largest attention to each token by KV group: `P_j = max_{t, h in H_g} a_{t,j}^(l,h)`.

    A retrieving head looks at the one span that answers a query, for that query only: a peak. In a sum it drowns
    in what all heads and queries pay to delimiters and neighbours. Arguments and shape as of `window_saliency`.
    """
    peak = _zeros(key)
    for group, seen, attention in _in_parts(window_query, key, scaling):
        peak[group, :seen] = torch.maximum(peak[group, :seen], attention.amax(dim=(0, 1, 2)))
    return peak


def attention_received(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the attention that all queries [H, N, d] pay to each key [G, N, d], by KV group: [G, N], float32.

    Blocks of queries are taken in turn, so that memory stays linear in N.
    """
    total = _zeros(key)
    for start in range(0, query.shape[1], _BLOCK_QUERIES):
        end = min(start + _BLOCK_QUERIES, query.shape[1])
        total[:, :end] += _causal_attention(query[:, start:end], key[:, :end], scaling).sum(dim=(1, 2))
    return total


def _in_parts(query: Tensor, key: Tensor, scaling: float) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each KV group's causal attention, some queries at a time: the group, the keys that these queries see at
    most, and [1, H/G, queries, keys], float32.
    """
    num_queries, num_tokens = query.shape[1], key.shape[1]
    for group, (group_query, group_key) in enumerate(zip(query.chunk(key.shape[0]), key.split(1), strict=True)):
        for start in range(0, num_queries, _BLOCK_QUERIES):
            end = min(start + _BLOCK_QUERIES, num_queries)
            seen = num_tokens - num_queries + end
            yield group, seen, _causal_attention(group_query[:, start:end], group_key[:, :seen], scaling)


def _zeros(key: Tensor) -> Tensor:
    return torch.zeros(key.shape[:2], dtype=torch.float32, device=key.device)


def _causal_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the causal attention of queries [H, T, d], the last T of the keys' [G, N, d]: [G, H/G, T, N], float32."""
    num_heads, num_queries, head_dim = query.shape
    num_groups, num_tokens, _ = key.shape
    grouped = query.reshape(num_groups, -1, head_dim)  # [G, H/G * T, d]
    scores = torch.matmul(grouped, key.transpose(1, 2)).float().mul_(scaling)  # [G, H/G * T, N]
    scores = scores.view(num_groups, num_heads // num_groups, num_queries, num_tokens)
    future = torch.ones(num_queries, num_queries, dtype=torch.bool, device=key.device).triu_(1)
    scores[..., num_tokens - num_queries :].masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1)
