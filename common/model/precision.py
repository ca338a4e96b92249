"""In which precision a model's weights are held: as set, or the quicker one, measured at start."""

import logging
import time

import torch
from torch import nn

from common.model.linear import quicken

_READ_BYTES = 128 * 2**20
"""Weights read for one measurement: more than a CPU's caches hold, as a model's are."""
_ROUNDS = 5

logger = logging.getLogger(__name__)


def choose_dtype(
    setting: str, device: torch.device, checkpoint: torch.dtype, *, hidden_size: int, inner_size: int, step_tokens: int
) -> torch.dtype:
    """Return the dtype of a model's weights.

    "auto" is bfloat16 on a GPU. On a CPU it is float32 for weights that are stored so: rounding them would change
    answers. For others it is whichever of bfloat16 and float32 takes `step_tokens` through the model's largest
    linear layer, [inner_size, hidden_size], sooner.
    """
    if setting != "auto":
        chosen: torch.dtype = getattr(torch, setting)
        return chosen
    if device.type != "cpu":
        return torch.bfloat16
    if checkpoint == torch.float32:
        return torch.float32
    seconds = {
        dtype: _linear_seconds(dtype, hidden_size, inner_size, step_tokens) for dtype in (torch.float32, torch.bfloat16)
    }
    quicker = min(seconds, key=seconds.__getitem__)
    logger.info(
        "precision measured",
        extra={
            "dtype": str(quicker),
            "step_tokens": step_tokens,
            **{f"{str(dtype).removeprefix('torch.')}_seconds": round(value, 6) for dtype, value in seconds.items()},
        },
    )
    return quicker


@torch.inference_mode()
def _linear_seconds(dtype: torch.dtype, hidden_size: int, inner_size: int, step_tokens: int) -> float:
    """Return the least time of a linear layer over `step_tokens`, its weights not in a cache."""
    count = max(1, _READ_BYTES // (hidden_size * inner_size * dtype.itemsize)) if step_tokens == 1 else 1
    layers = nn.ModuleList(nn.Linear(hidden_size, inner_size, bias=False, dtype=dtype) for _ in range(count))
    quicken(layers)
    tokens = torch.randn(step_tokens, hidden_size, dtype=dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for layer in layers:
            layer(tokens)
        best = min(best, (time.perf_counter() - started) / count)
    return best
