"""Choosing the next token: a pure function of logits, parameters, seed and step."""

import math
import struct
from dataclasses import dataclass
from typing import Self

import torch
import xxhash
from torch import Tensor

from common.errors import InvalidRequestError
from common.pb import decode_pb2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen, and when it ends.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch that filter off. They apply in the
    order temperature, top-k, top-p, min-p.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    stop_token_ids: frozenset[int]

    def __post_init__(self) -> None:
        """Refuse values outside their range, by name."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InvalidRequestError(f"temperature must be at least 0, not {self.temperature}", param="temperature")
        if not 0 < self.top_p <= 1:
            raise InvalidRequestError(f"top_p must be above 0 and at most 1, not {self.top_p}", param="top_p")
        if not 0 <= self.min_p <= 1:
            raise InvalidRequestError(f"min_p must be between 0 and 1, not {self.min_p}", param="min_p")
        if self.max_tokens < 1:
            raise InvalidRequestError("max_tokens must be at least 1", param="max_tokens")

    @classmethod
    def from_pb(cls, message: decode_pb2.Sampling) -> Self:
        """Read a message; raise InvalidRequestError for values out of range."""
        return cls(
            temperature=message.temperature,
            top_k=message.top_k,
            top_p=message.top_p,
            min_p=message.min_p,
            seed=message.seed,
            max_tokens=message.max_tokens,
            stop_token_ids=frozenset(message.stop_token_ids),
        )

    @property
    def is_filtered(self) -> bool:
        """Tell whether unlikely tokens are cut off."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def choose_tokens(logits: Tensor, samplings: list[Sampling], steps: list[int]) -> list[int]:
    """Return each row's next token for logits [B, V], float32.

    A row's choice never depends on the other rows: they only share the call.
    """
    chosen = logits.argmax(dim=-1)
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    for filtered in (False, True):
        group = [row for row in rows if samplings[row].is_filtered is filtered]
        if group:
            draw = _draw_filtered if filtered else _draw
            uniforms = [uniform(samplings[row].seed, steps[row]) for row in group]
            temperatures = _column(logits, [samplings[row].temperature for row in group])
            # Shifted before the division: the largest logit is 0 at any temperature, so nothing overflows.
            scaled = logits[group] - logits[group].amax(dim=-1, keepdim=True)
            scaled = scaled / temperatures.clamp_min(1e-6)
            chosen[group] = draw(scaled, [samplings[row] for row in group], _column(logits, uniforms).double())
    tokens: list[int] = chosen.tolist()
    return tokens


def uniform(seed: int, step: int) -> float:
    """Return the random number in [0, 1) of one step of one request."""
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
