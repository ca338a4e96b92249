"""Local saliency: the attention that the last w queries pay to each token, `S_j^(l)`."""

import torch
from torch import Tensor


def window_saliency(window_query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return S per KV group: `S_j = 1/w * sum_{t in last w} sum_{h in H_g} a_{t,j}^(l,h)`.

    The formula's sum over g is left to the caller, who may want one set per group. The product is grouped:
    keys are never repeated per query head, and only [G, H/G * w, N] scores exist.

    Args:
        window_query: rotated queries of the last w tokens, [H, w, d]; heads of a group are adjacent.
        key: rotated keys of all tokens, [G, N, d].
        scaling: factor of the scores before the softmax.

    Returns:
        [G, N], float32. Each row sums to H/G.
    """
    num_heads, window, head_dim = window_query.shape
    num_groups, num_tokens, _ = key.shape
    grouped = window_query.reshape(num_groups, -1, head_dim)  # [G, H/G * w, d]
    scores = torch.matmul(grouped, key.transpose(1, 2)).float().mul_(scaling)  # [G, H/G * w, N]
    scores = scores.view(num_groups, num_heads // num_groups, window, num_tokens)
    future = torch.ones(window, window, dtype=torch.bool, device=key.device).triu_(1)
    scores[..., num_tokens - window :].masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1).sum(dim=(1, 2)).div_(window)
