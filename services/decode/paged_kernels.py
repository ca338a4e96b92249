"""The Triton kernels behind `paged_attention`, which says what their arguments are.

Pointers are to first elements; `*_row` and `*_head` are strides in elements, and last dimensions are contiguous. Sizes
that are padded to powers of two, as Triton's blocks must be, come with a mask.
"""

import triton
import triton.language as tl


@triton.jit
def store_newest_kernel(
    keys,
    values,
    key,
    value,
    tables,
    length,
    key_row,
    key_head,
    value_row,
    value_head,
    table_row,
    size: tl.constexpr,
    size_padded: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
):
    """Store one sequence's newest key and value, [G, d], in its last slot."""
    row = tl.program_id(0)
    end = tl.load(length + row)
    last = tl.maximum(end - 1, 0)
    block = tl.load(tables + row * table_row + last // block_tokens, mask=end > 0, other=0)
    # A pool may have more than 2^31 elements.
    slot = block.to(tl.int64) * block_tokens + last % block_tokens
    element = tl.arange(0, size_padded)
    mask = (element < size) & (end > 0)
    head, dim = element // head_dim, element % head_dim
    new_key = tl.load(key + row * key_row + head * key_head + dim, mask=mask)
    new_value = tl.load(value + row * value_row + head * value_head + dim, mask=mask)
    tl.store(keys + slot * size + element, new_key, mask=mask)
    tl.store(values + slot * size + element, new_value, mask=mask)


@triton.jit
def attend_share_kernel(
    query,
    keys,
    values,
    tables,
    first,
    length,
    partial,
    logsumexp,
    scaling,
    query_row,
    query_head,
    table_row,
    group: tl.constexpr,
    group_padded: tl.constexpr,
    head_dim: tl.constexpr,
    head_dim_padded: tl.constexpr,
    tile: tl.constexpr,
    splits: tl.constexpr,
    block_tokens: tl.constexpr,
):
    """Attend with one KV head's queries to one share of one sequence; leave the result and its softmax denominator."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    begin, end = tl.load(first + row), tl.load(length + row)
    # Shares are whole tiles, and cut from this sequence's length, not the longest one's: all have work.
    share = tl.cdiv(tl.cdiv(end - begin, splits), tile) * tile
    start = begin + split * share
    stop = tl.minimum(start + share, end)

    members, dims = tl.arange(0, group_padded), tl.arange(0, head_dim_padded)
    heads = kv_head * group + members
    own = (members < group)[:, None] & (dims < head_dim)[None, :]
    q = tl.load(query + row * query_row + heads[:, None] * query_head + dims[None, :], mask=own, other=0.0)

    largest = tl.full([group_padded], float("-inf"), tl.float32)
    total = tl.zeros([group_padded], tl.float32)
    output = tl.zeros([group_padded, head_dim_padded], tl.float32)
    for tile_start in range(start, stop, tile):
        tokens = tile_start + tl.arange(0, tile)
        live = tokens < stop
        blocks = tl.load(tables + row * table_row + tokens // block_tokens, mask=live, other=0)
        slots = blocks.to(tl.int64) * block_tokens + tokens % block_tokens
        elements = (slots[:, None] * num_kv_heads + kv_head) * head_dim + dims[None, :]
        mask = live[:, None] & (dims < head_dim)[None, :]
        k = tl.load(keys + elements, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        scores = tl.where(live[None, :], scores, float("-inf"))
        # The first token of every tile is live, so the maximum is a number from the first tile on.
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        rescale = tl.exp(largest - new_largest)
        weights = tl.exp(scores - new_largest[:, None])
        v = tl.load(values + elements, mask=mask, other=0.0)
        output = output * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * rescale + tl.sum(weights, axis=1)
        largest = new_largest

    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    places = (row * num_kv_heads * group + heads) * splits + split
    tl.store(partial + places[:, None] * head_dim + dims[None, :], output / divisor[:, None], mask=own)
    tl.store(logsumexp + places, tl.where(empty, float("-inf"), largest + tl.log(divisor)), mask=members < group)


@triton.jit
def merge_shares_kernel(
    partial,
    logsumexp,
    output,
    head_dim: tl.constexpr,
    head_dim_padded: tl.constexpr,
    splits: tl.constexpr,
):
    """Weigh one query head's shares by their denominators."""
    head = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    shares, dims = tl.arange(0, splits), tl.arange(0, head_dim_padded)
    weights = tl.load(logsumexp + head * splits + shares)
    largest = tl.max(weights, axis=0)
    # Where all are empty they weigh nothing, rather than exp(-inf + inf).
    weights = tl.exp(weights - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(weights, axis=0)
    mask = dims < head_dim
    parts = tl.load(
        partial + (head * splits + shares)[:, None] * head_dim + dims[None, :], mask=mask[None, :], other=0.0
    )
    merged = tl.sum(parts * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(output + head * head_dim + dims, merged.to(output.dtype.element_ty), mask=mask)
