"""Numbers as small codes and back: value = (code + zero) * scale, with one scale and zero per group.

The zero point is an integer of 16 bits, and a scale is never less than the group's largest magnitude over 32767.
So a group that lies far from zero is told apart as finely as its range allows, code + zero never overflows, and
(code + zero) * scale, 16 bits times 8, is exact in float32.
"""

import torch
from torch import Tensor

LEVELS = {"int8": 256, "int4": 16}
"""How many codes there are, by codec."""

SCALE_DTYPE = torch.bfloat16
ZERO_DTYPE = torch.int16

_LARGEST_ZERO = torch.iinfo(ZERO_DTYPE).max
_SMALLEST_SCALE = torch.finfo(SCALE_DTYPE).tiny
_SCALE_BITS = (0x0080, 0x7F7F)
"""Of the smallest normal bfloat16, and of the largest."""


def parameters(grouped: Tensor, axis: int, levels: int) -> tuple[Tensor, Tensor]:
    """Return scale (bfloat16) and zero (int16) of float32 numbers grouped along `axis`, which becomes 1 long.

    Numbers that are not finite give a scale that `are_scales` refuses.
    """
    low, high = grouped.amin(axis, keepdim=True), grouped.amax(axis, keepdim=True)
    # Two levels are spare: one for the floor in zero, one for rounding. Scaling first keeps the range finite.
    # Divisors are tensors: by a number a GPU divides by way of its reciprocal, and scales are to be those of a CPU.
    steps, largest = (grouped.new_full((), number) for number in (levels - 2, _LARGEST_ZERO))
    wanted = torch.maximum(high / steps - low / steps, torch.maximum(high, -low) / largest)
    scale = _rounded_up(wanted.clamp_min(_SMALLEST_SCALE))
    return scale, torch.floor(low / scale.float()).to(ZERO_DTYPE)


def quantise_(grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Turn float32 numbers into their codes, in place and still as float32: whole numbers, none negative.

    They stay below the levels that the scale was made for: of these, rounding and the floor in zero use the two spare.
    """
    return grouped.div_(scale.float()).round_().sub_(zero.float())


def dequantise_(codes: Tensor, scale: Tensor, zero: Tensor, limit: float) -> Tensor:
    """Turn codes, as float32, back into numbers, in place; none gets beyond `limit`, be it half a scale."""
    return codes.add_(zero).mul_(scale.float()).clamp_(-limit, limit)


def are_scales(scale: Tensor) -> bool:
    """Tell whether these can be scales: finite, and no smaller than the smallest normal number."""
    if not scale.numel():
        return True
    # Their bits ascend as they do, with all negative numbers before them, and infinity and NaN behind.
    least, largest = torch.aminmax(scale.view(torch.int16))
    return bool(least >= _SCALE_BITS[0]) and bool(largest <= _SCALE_BITS[1])


def pack(codes: Tensor) -> Tensor:
    """Put two codes of 4 bits, uint8 [..., d], into a byte, [..., d / 2], the first in its low half."""
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _rounded_up(positive: Tensor) -> Tensor:
    """Round positive float32 numbers up to bfloat16, which is float32's upper half."""
    bits = positive.view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(SCALE_DTYPE)
