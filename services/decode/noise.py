"""Random numbers that are a pure function of (seed, step, token): no state, the same on every device."""

import struct
from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor

_WEYL, _FIRST, _SECOND = (value - 2**32 for value in (0x9E3779B1, 0xF1357AEB, 0xD35A2D97))  # odd, as int32
_LARGEST = 1 - 2**-24
"""The largest float32 below 1."""


def gumbel(draws: Iterable[tuple[int, int]], token_ids: Tensor) -> Tensor:
    """Return Gumbel noise for each row's draw, its seed and step, at token ids [V] or [B, V], int64; float32 [B, V].

    Whoever adds it to log probabilities and takes the largest has drawn from them.
    """
    keys = torch.tensor([_key(*draw) for draw in draws], dtype=torch.int32, device=token_ids.device)  # [B, 2]
    share = _bits(keys, token_ids.int()).float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST)
    # Of a small share: the winners' are, and float32 tells small numbers apart where it has 1 for all near 1.
    exponential = share.neg_().log1p_().neg_()
    return exponential.log_().neg_()


def _key(seed: int, step: int) -> tuple[int, int]:
    """Return two int32 that differ for neighbouring seeds and steps in half of their bits."""
    first, second = struct.unpack("<ii", xxhash.xxh3_64_digest(struct.pack("<QQ", seed, step)))
    return first, second


def _bits(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Hash tokens, int32, by each row's two keys [B, 2] to 31 bits, int32. A shift of int32 keeps the sign: hence &."""
    bits = (token_ids * _WEYL) ^ keys[:, :1]
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _FIRST
    bits ^= keys[:, 1:]
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _SECOND
    bits ^= (bits >> 16) & 0xFFFF
    return bits.bitwise_and_(0x7FFFFFFF)
