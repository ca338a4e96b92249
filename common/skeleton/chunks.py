"""Where a layer is cut into chunks, so that each is what it would be if it had been encoded alone."""

from bisect import bisect_right
from functools import lru_cache

from common.skeleton.codecs import GROUP_TOKENS, Codec

Span = tuple[int, int]
"""A chunk's first token in its layer, and the one behind its last."""


@lru_cache(maxsize=64)  # a prompt's layers have few sizes
def chunk_spans(codec: Codec, layer_tokens: int, num_bytes: int) -> tuple[Span, ...]:
    """Return a layer's chunks in order, each with at most so many bytes.

    The quantised tokens of all chunks but the last that has any are whole groups. A chunk has at least one token, or
    one group, however large that is.
    """
    spans: list[Span] = []
    start = 0
    while start < layer_tokens:
        end = _chunk_end(codec, layer_tokens, start, num_bytes)
        spans.append((start, end))
        start = end
    return tuple(spans)


def _chunk_end(codec: Codec, layer_tokens: int, start: int, num_bytes: int) -> int:
    ends = range(start + 1, layer_tokens + 1)
    fit = bisect_right(ends, num_bytes, key=lambda end: codec.num_bytes(codec.split(layer_tokens, start, end)))
    end = start + max(1, fit)
    split, rest = codec.split(layer_tokens, start, end), codec.split(layer_tokens, start, layer_tokens)
    if split.quantised == rest.quantised:
        return end
    whole = split.quantised - split.quantised % GROUP_TOKENS
    if not split.first + whole:
        whole = min(GROUP_TOKENS, rest.quantised)
    return start + split.first + whole
