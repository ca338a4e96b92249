"""Choosing the best tokens. A budget counts the tokens that are always kept: the window and the attention sinks."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

_OWN_SHARE = 2.0**-10


def pooled(scores: Tensor, pool_tokens: int) -> Tensor:
    """Smooth scores [..., tokens] by the maximum over `pool_tokens` neighbours, so that names stay whole.

    A maximum leaves plateaus; a trace of each token's own score orders the tokens on them.
    """
    if pool_tokens <= 1:
        return scores
    rows = scores.reshape(1, -1, scores.shape[-1])
    padded = torch.nn.functional.pad(rows, ((pool_tokens - 1) // 2, pool_tokens // 2), value=float("-inf"))
    return max_pool1d(padded, pool_tokens, stride=1).view(scores.shape) + _OWN_SHARE * scores


def blocked(scores: Tensor, blocks: Tensor, num_blocks: int) -> Tensor:
    """Give every token of a block the block's best score, so that what belongs together is kept together.

    As in `pooled`, a trace of each token's own score orders the tokens inside a block.

    Args:
        scores: [..., tokens].
        blocks: [tokens], int64, each token's block; ascending.
        num_blocks: how many there may be; told, since to look would be to wait for the device.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    of_token = blocks.expand(rows.shape[0], -1)
    best = rows.new_zeros(rows.shape[0], num_blocks)
    best = best.scatter_reduce(1, of_token, rows, "amax", include_self=False)
    return best.gather(1, of_token).view(scores.shape) + _OWN_SHARE * scores


def keep_top(scores: Tensor, budget: int, *, sinks: int, window: int) -> Tensor:
    """Return the indices of the kept tokens, ascending: sinks, window, and the best scores between them.

    Args:
        scores: [..., tokens]; what lies in the sinks and the window is not looked at.
        budget: tokens to keep in all.
        sinks: first tokens, always kept.
        window: last tokens, always kept.

    Returns:
        [..., min(budget, tokens)], int64; at least sinks + window where there are as many tokens.
    """
    num_tokens = scores.shape[-1]
    everything = torch.arange(num_tokens, device=scores.device).expand(*scores.shape[:-1], -1)
    chosen = max(budget, sinks + window) - sinks - window
    if sinks + window + chosen >= num_tokens:
        return everything
    best = scores[..., sinks : num_tokens - window].topk(chosen, dim=-1).indices.sort(dim=-1).values + sinks
    return torch.cat((everything[..., :sinks], best, everything[..., num_tokens - window :]), dim=-1)
