"""Values over a long prompt, as few as a picture can show."""

import torch
from torch import Tensor


def peaks(values: Tensor, most: int) -> Tensor:
    """Return the largest value of each of at most `most` stretches of equal length along the last axis.

    NaN counts only in a stretch that has nothing else; so do infinities, which no picture has room for.
    """
    finite = torch.where(values.isfinite(), values, -torch.inf)
    width = -(-values.shape[-1] // most)
    padded = torch.nn.functional.pad(finite, (0, -values.shape[-1] % width), value=-torch.inf)
    highest = padded.unflatten(-1, (-1, width)).amax(dim=-1)
    return torch.where(highest.isfinite(), highest, torch.nan)


def top_of_scored(values: Tensor, sinks: int, window: int) -> float:
    """Return the largest value between sinks and window, which would dwarf everything; of all if that is none."""
    scored = values[sinks : values.shape[0] - window]
    finite = scored[scored.isfinite()]
    if not finite.numel():
        finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0
