"""Attention of one new token per sequence over the paged pool, by Triton kernels.

A program reads a share of one sequence's keys and values for all query heads of one KV head, so that every byte is
read once; the shares are merged by their softmax denominators (flash-decoding). Nothing here depends on the host:
block tables and lengths are read from the device's memory, so a CUDA graph of a call serves every later step.

Rows of length 0 are padding: they store nothing, read no table and come out as zeros.
"""

import torch
import triton
from torch import Tensor

from services.decode.paged_kernels import attend_share_kernel, merge_shares_kernel, store_newest_kernel
from services.decode.pool import BLOCK_TOKENS

_SHORTEST_SHARE = 256
"""Tokens below which reading a share takes less time than merging it."""
_LONGEST_SHARE = 2048
"""Tokens above which one program would be read for when all others are done."""
_PROGRAMS_PER_MULTIPROCESSOR = 2
_MAX_SPLITS = 64
_TILE_BYTES = 16 * 1024
"""Of keys that are in flight at once, and as many of values: two stages of both fit any GPU's shared memory."""


def num_splits(max_blocks: int, rows: int, num_kv_heads: int, multiprocessors: int) -> int:
    """Return into how many shares sequences are cut whose tables have room for so many blocks, a power of two.

    As few as keep the GPU's multiprocessors busy: each leaves a result that has to be written and merged. But one long
    table among many short ones is cut all the same, as its programs are the last.
    """
    tokens = max_blocks * BLOCK_TOKENS
    most, least = tokens // _SHORTEST_SHARE, tokens // _LONGEST_SHARE
    wanted = triton.cdiv(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, rows * num_kv_heads)
    splits: int = triton.next_power_of_2(max(1, min(_MAX_SPLITS, most, max(least, wanted))))
    return splits


def store_newest(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, tables: Tensor, length: Tensor) -> None:
    """Write each sequence's newest token into its last slot.

    Args:
        keys: the pool's, [slots, G, d]; `values` likewise.
        key: the tokens', [B, G, d]; `value` likewise.
        tables: blocks of each sequence, int32 [B, M], rows any distance apart.
        length: slots in use, the newest token's included, int32 [B].
    """
    num_rows, num_kv_heads, head_dim = key.shape
    size = num_kv_heads * head_dim
    _check(keys, values, key, value, tables)
    store_newest_kernel[(num_rows,)](
        keys, values, key, value, tables, length,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1), tables.stride(0),
        size=size, size_padded=triton.next_power_of_2(size), head_dim=head_dim, block_tokens=BLOCK_TOKENS,
    )  # fmt: skip


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    first: Tensor,
    length: Tensor,
    scaling: float,
    splits: int,
) -> Tensor:
    """Attend with each sequence's newest token to its slots `first` to `length`.

    Args:
        query: [B, H, d], heads that share a KV head side by side.
        keys: the pool's, [slots, G, d]; `values` likewise.
        tables: blocks of each sequence, int32 [B, M], rows any distance apart.
        first: slots before this one have slid out of the window, int32 [B].
        length: slots in use, int32 [B].
        scaling: of the products of queries and keys.
        splits: shares that a sequence is cut into, a power of two; see `num_splits`.

    Returns:
        [B, H, d], contiguous, in the query's dtype; sums are float32.
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    _check(keys, values, query, tables)
    head_dim_padded = max(16, triton.next_power_of_2(head_dim))
    tile = min(64, max(16, _TILE_BYTES // (head_dim_padded * keys.element_size())))
    partial = torch.empty((num_rows, num_heads, splits, head_dim), dtype=torch.float32, device=query.device)
    logsumexp = torch.empty((num_rows, num_heads, splits), dtype=torch.float32, device=query.device)
    attend_share_kernel[(num_rows, num_kv_heads, splits)](
        query, keys, values, tables, first, length, partial, logsumexp,
        scaling, query.stride(0), query.stride(1), tables.stride(0),
        group=group, group_padded=max(16, triton.next_power_of_2(group)),
        head_dim=head_dim, head_dim_padded=head_dim_padded,
        tile=tile, splits=splits, block_tokens=BLOCK_TOKENS,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    if splits == 1:
        return partial[:, :, 0].to(query.dtype)
    output = torch.empty((num_rows, num_heads, head_dim), dtype=query.dtype, device=query.device)
    merge_shares_kernel[(num_rows, num_heads)](
        partial, logsumexp, output, head_dim=head_dim, head_dim_padded=head_dim_padded, splits=splits
    )
    return output


def _check(keys: Tensor, values: Tensor, *tensors: Tensor) -> None:
    """Make sure of what the kernels take for granted."""
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert all(tensor.stride(-1) == 1 for tensor in tensors)
