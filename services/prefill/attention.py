"""Causal attention of a sequence whose tokens come in chunks, full or within a sliding window."""

from torch import Tensor

from common.model.attention import sequence_attention
from common.model.positions import Positions
from services.prefill.tiles import Tiles


class SequenceAttention:
    """One layer's attention over a sequence, a chunk of queries at a time.

    It gathers the layer's keys and values as the chunks come, and keeps the last queries: what a selector looks at.

    Attributes:
        positions: of the N tokens, with gaps where some were left behind at the pivot.
        start: of the chunk that comes next.
        query: rotated queries of the last tokens, [H, observed, d].
        key: rotated keys, [G, N, d].
        value: [G, N, d].
        scaling: factor of the scores before the softmax.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float

    def __init__(self, positions: Positions, window: int | None, observed: int, tiles: Tiles | None = None) -> None:
        """Take the layer's sliding window, if it has one, how many of the last queries to keep, and the tiles in which
        full chunks attend.
        """
        self.positions = positions
        self.start = 0
        self._window = window
        self._tiles = tiles
        self._observed = min(observed, len(positions))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """Take a chunk's keys and values [1, G, T, d] and attend with its queries [1, H, T, d] -> [1, H, T, d]."""
        end = self.start + query.shape[2]
        self.scaling = scaling
        self._store(query[0], key[0], value[0], end)
        output = self._attend(query, self.key[None, :, :end], self.value[None, :, :end])
        self.start = end
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with a chunk's queries [1, H, T, d] to the keys and values [1, G, end, d] -> [1, H, T, d]."""
        if self._tiles is not None and self._window is None and self._tiles.fit(query.shape[2], key.shape[2]):
            return self._tiles(query, key, value, self.scaling)
        return sequence_attention(query, key, value, self.positions, self._window, self.scaling)

    def _store(self, query: Tensor, key: Tensor, value: Tensor, end: int) -> None:
        num_tokens = len(self.positions)
        first_observed = num_tokens - self._observed
        if end - self.start == num_tokens:  # in one piece: nothing to gather
            self.query, self.key, self.value = query[:, first_observed:], key, value
            return
        if self.start == 0:
            self.query = query.new_empty(query.shape[0], self._observed, query.shape[2])
            self.key, self.value = (x.new_empty(x.shape[0], num_tokens, x.shape[2]) for x in (key, value))
        self.key[:, self.start : end], self.value[:, self.start : end] = key, value
        if end > first_observed:
            newest = query[:, max(0, first_observed - self.start) :]
            self.query[:, end - first_observed - newest.shape[1] : end - first_observed] = newest
