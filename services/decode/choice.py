"""Choosing the next token: a pure function of logits, parameters, seed and the tokens before."""

import struct

import torch
import xxhash
from torch import Tensor

from services.decode.answer import Answer
from services.decode.logits import adjust
from services.decode.sampling import Sampling
from services.decode.token_mask import constrain


def choose_tokens(logits: Tensor, answers: list[Answer]) -> list[int]:
    """Return each row's next token for logits [B, V], float32, which are changed where an answer's parameters say so.

    A row's choice never depends on the other rows: they only share the call.
    """
    adjust(logits, answers)
    constrain(logits, answers)
    chosen = logits.argmax(dim=-1)
    rows = [row for row, answer in enumerate(answers) if answer.sampling.temperature > 0]
    for filtered in (False, True):
        group = [row for row in rows if answers[row].sampling.is_filtered is filtered]
        if group:
            draw = _draw_filtered if filtered else _draw
            samplings = [answers[row].sampling for row in group]
            uniforms = [uniform(answers[row].seed, answers[row].num_generated) for row in group]
            temperatures = _column(logits, [sampling.temperature for sampling in samplings])
            # Shifted before the division: the largest logit is 0 at any temperature, so nothing overflows.
            scaled = logits[group] - logits[group].amax(dim=-1, keepdim=True)
            scaled = scaled / temperatures.clamp_min(1e-6)
            chosen[group] = draw(scaled, samplings, _column(logits, uniforms).double())
    tokens: list[int] = chosen.tolist()
    return tokens


def uniform(seed: int, step: int) -> float:
    """Return the random number in [0, 1) of one step of one answer."""
    return (xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed, step)) >> 11) * 2.0**-53


def _draw(logits: Tensor, _: list[Sampling], uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution, tokens in the order of their ids."""
    return _invert(logits.double().softmax(dim=-1), uniforms)


def _draw_filtered(logits: Tensor, samplings: list[Sampling], uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution of what the filters leave, the likeliest token first."""
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    vocab_size = logits.shape[-1]
    rank = torch.arange(vocab_size, device=logits.device)
    top_k = _column(rank, [s.top_k or vocab_size for s in samplings])
    probs = ordered.double().masked_fill(rank >= top_k, float("-inf")).softmax(dim=-1)
    # A token stays if those before it have not reached top_p yet, so the likeliest always does.
    before = probs.cumsum(dim=-1) - probs
    dropped = before >= _column(probs, [s.top_p for s in samplings])
    dropped[:, 0] = False
    dropped |= probs < probs[:, :1] * _column(probs, [s.min_p for s in samplings])
    return token_ids.gather(1, _invert(probs.masked_fill(dropped, 0.0), uniforms)[:, None])[:, 0]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index at which each row's running sum passes its share `uniforms` [B, 1] of the total."""
    sums = weights.cumsum(dim=-1)
    index = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)[:, 0]
    # Rounding may carry the share to the total; the last token with any weight is meant then.
    last = weights.shape[-1] - 1 - weights.flip(-1).gt(0).int().argmax(dim=-1)
    return torch.minimum(index, last)


def _column(like: Tensor, values: list[float] | list[int]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
