"""Causal attention of a full chunk in tiles of few shapes, by cuDNN, which is the quickest on Hopper and Blackwell.

cuDNN takes 0.1 to 0.9 s to plan for each new shape, and aligns its causal mask with the first key. So a chunk of T
tokens attends to itself, causally, and to the full chunks before it without a mask, some at a time. The parts are
merged by their softmax denominators.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from common.model.decoder import ModelSpec

PAST_CHUNKS = (4, 1)
"""So many chunks of the past are a tile: three plans in all, with the causal one. A chunk of Llama-3.1-8B's takes
4.4 TFLOP for each chunk before it, 7 ms at 600 TFLOP/s, and a merge moves 1.2 GB, 0.3 ms. Over all chunks of a prompt,
merges add 2% to attention at 128K tokens (2 a chunk, beside 3.5 chunks of past and half a one of its own) and 1% at 1M
(9 beside 31.5); with tiles of one chunk it would be 4%."""

Kernel = Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]
"""Attends with query [1, H, T, d] to key and value [1, G, N, d], with a factor of the scores, and causally or not.

Returns the output [1, H, T, d] and the scores' log-sum-exp [1, H, T, 1], float32.
"""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A kernel, and how many tokens a full chunk has."""

    kernel: Kernel
    chunk_tokens: int

    def fit(self, num_queries: int, num_keys: int) -> bool:
        """Tell whether a sequence's last queries are a full chunk with full chunks before it."""
        return num_queries == self.chunk_tokens and num_keys % self.chunk_tokens == 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend with a full chunk [1, H, T, d] to all tokens up to its end [1, G, n * T, d] -> [1, H, T, d]."""
        past = key.shape[2] - self.chunk_tokens
        output, logsumexp = self.kernel(query, key[:, :, past:], value[:, :, past:], scaling, True)
        if past == 0:
            return output
        merged, logsumexp = output.float(), logsumexp.clone()
        for start, end in self._past_tiles(past):
            merge(merged, logsumexp, *self.kernel(query, key[:, :, start:end], value[:, :, start:end], scaling, False))
        return merged.to(query.dtype)

    def _past_tiles(self, past: int) -> list[tuple[int, int]]:
        """Cut the past into the largest tiles first."""
        tiles, start = [], 0
        for chunks in PAST_CHUNKS:
            tokens = chunks * self.chunk_tokens
            while past - start >= tokens:
                tiles.append((start, start + tokens))
                start += tokens
        return tiles


def merge(output: Tensor, logsumexp: Tensor, more: Tensor, more_logsumexp: Tensor) -> None:
    """Add what the same queries see elsewhere, in place.

    Args:
        output: [1, H, T, d], float32.
        logsumexp: of its scores, [1, H, T, 1], float32.
        more: the output over other keys, [1, H, T, d].
        more_logsumexp: of the scores there, [1, H, T, 1], float32.
    """
    output.lerp_(more.float(), torch.sigmoid(more_logsumexp - logsumexp))
    torch.logaddexp(logsumexp, more_logsumexp, out=logsumexp)


def cudnn(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attend by cuDNN: a `Kernel`."""
    # cuDNN plans for strides as well, and those of a part of a prompt's keys grow with the prompt. `contiguous` would
    # leave those of a single KV head as they are. The copy takes half a percent of the tile's time.
    key, value = (x.clone(memory_format=torch.contiguous_format) for x in (key, value))
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scaling
    )
    return output, logsumexp.reshape(*query.shape[:3], 1)  # the last dimension is there in some versions of torch


def tiles_for(spec: ModelSpec, device: torch.device, chunk_tokens: int) -> Tiles | None:
    """Return cuDNN's tiles for a model's full chunks; None where cuDNN is no quicker, or cannot do it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return None
    query, key = (
        torch.empty(1, 1, 1, spec.head_dim, dtype=spec.dtype, device=device).expand(1, heads, chunk_tokens, -1)
        for heads in (spec.num_heads, spec.num_kv_heads)
    )
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)  # or the answer is no
    try:
        usable = can_use_cudnn_attention(SDPAParams(query, key, key, None, 0.0, True, True))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
    return Tiles(cudnn, chunk_tokens) if usable else None
