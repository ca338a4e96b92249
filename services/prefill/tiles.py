"""Causal attention of a chunk in tiles of few shapes, for a kernel that is quick but plans for each new shape.

A chunk of T tokens attends to itself, causally, and to the full chunks before it without a mask, some at a time. The
parts are merged by their softmax denominators.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

PAST_CHUNKS = (4, 1)
"""So many chunks of the past are a tile: three shapes in all, with the causal one. A chunk of Llama-3.1-8B's takes
4.4 TFLOP for each chunk before it, 7 ms at 600 TFLOP/s, and a merge moves 1.2 GB, 0.3 ms. Over all chunks of a prompt,
merges add 2% to attention at 128K tokens (2 a chunk, beside 3.5 chunks of past and half a one of its own) and 1% at 1M
(9 beside 31.5); with tiles of one chunk it would be 4%."""
_LEAST_FILLED = 3 / 4
"""Of a chunk that is filled up to be attended as a full one. At half the speed its own triangle would take as long at
0.7 of a chunk, and what comes before it at 0.5."""

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
        """Tell whether a sequence's last queries are a chunk, full or nearly so, with full chunks before it."""
        filled = _LEAST_FILLED * self.chunk_tokens <= num_queries <= self.chunk_tokens
        return filled and (num_keys - num_queries) % self.chunk_tokens == 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend with a chunk [1, H, T, d] to all tokens up to its end [1, G, past + T, d] -> [1, H, T, d]."""
        num_queries, past = query.shape[2], key.shape[2] - query.shape[2]
        # Nobody sees keys that come later, and the queries with them are dropped.
        query, own_key, own_value = (self._filled(x) for x in (query, key[:, :, past:], value[:, :, past:]))
        output, logsumexp = self.kernel(query, own_key, own_value, scaling, True)
        if past > 0:
            merged, logsumexp = output.float(), logsumexp.clone()
            for tile in self._past_tiles(past):
                merge(merged, logsumexp, *self.kernel(query, key[:, :, tile], value[:, :, tile], scaling, False))
            output = merged.to(query.dtype)
        return output[:, :, :num_queries]

    def _filled(self, heads: Tensor) -> Tensor:
        """Fill [1, heads, tokens, d] up to a full chunk, laid out by token as a model's projections are."""
        missing = self.chunk_tokens - heads.shape[2]
        return pad(heads.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2) if missing else heads

    def _past_tiles(self, past: int) -> list[slice]:
        """Cut the past into tiles, the largest first."""
        tiles, start = [], 0
        for chunks in PAST_CHUNKS:
            tokens = chunks * self.chunk_tokens
            while past - start >= tokens:
                tiles.append(slice(start, start + tokens))
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
