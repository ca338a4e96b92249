"""Which tokens top-k, top-p and min-p leave."""

import torch
from torch import Tensor

from services.decode.sampling import Sampling

_LIKELIEST = 1024
"""Ranked first: mostly the filters leave fewer, and a whole vocabulary takes a hundred times as long to sort."""


def likeliest(logits: Tensor, samplings: list[Sampling]) -> tuple[Tensor, Tensor]:
    """Return what each row's filters leave of its logits [B, V], whose largest is 0: logits [B, n] and token ids.

    What is left is all from some logit on, so equals stay or go together; behind it is -inf.
    """
    vocab_size = logits.shape[1]
    most = max(_LIKELIEST, *(sampling.top_k + 1 for sampling in samplings))
    if most < vocab_size:
        ordered, token_ids = logits.topk(most)
        lowest, last = _lowest_left(logits, ordered, samplings), ordered[:, -1:]
        if bool(((last < lowest) | (last == float("-inf"))).all()):
            return _cut(ordered, lowest), token_ids
    ordered, token_ids = logits.sort(dim=-1, descending=True)
    return _cut(ordered, _lowest_left(logits, ordered, samplings)), token_ids


def _cut(ordered: Tensor, lowest: Tensor) -> Tensor:
    return ordered.masked_fill(ordered < lowest, float("-inf"))


def _lowest_left(logits: Tensor, ordered: Tensor, samplings: list[Sampling]) -> Tensor:
    """Return the lowest logit that each row's filters leave, [B, 1], given its largest ones in order [B, n].

    Top-p counts of the probability that top-k leaves; the likeliest token always stays.
    """
    weights = ordered.double().exp()
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    whole = [min(sampling.top_k or logits.shape[1], logits.shape[1]) for sampling in samplings]
    in_top_k = rank < _column(whole, rank)
    is_cut = _column([bool(sampling.top_k) for sampling in samplings], in_top_k)
    everything = logits.exp().sum(dim=-1, keepdim=True, dtype=torch.double)
    total = torch.where(is_cut, (weights * in_top_k).sum(dim=-1, keepdim=True), everything)
    # Where top-p is off, rounding must not make it bite at the end.
    top_p = _column([sampling.top_p if sampling.top_p < 1 else 2.0 for sampling in samplings], weights)
    stays = in_top_k & (weights.cumsum(dim=-1) - weights < top_p * total)
    stays &= weights >= _column([sampling.min_p for sampling in samplings], weights)
    stays[:, 0] = True
    return ordered.masked_fill(~stays, float("inf")).amin(dim=-1, keepdim=True)


def _column(values: list[int] | list[float] | list[bool], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
