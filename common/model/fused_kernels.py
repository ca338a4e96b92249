"""The Triton kernels behind `FusedElementwise`, which says what their arguments are.

Pointers are to first elements; `*_row` and `*_head` are strides in elements, last dimensions are contiguous, and so is
all that is written. Sizes that are padded to powers of two, as Triton's blocks must be, come with a mask. Sums are
float32, and what transformers rounds to the tensors' type in between is rounded here.
"""

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    tokens,
    delta,
    weight,
    summed,
    output,
    epsilon,
    tokens_row,
    delta_row,
    adds: tl.constexpr,
    from_one: tl.constexpr,
    size: tl.constexpr,
    size_padded: tl.constexpr,
):
    """Normalise one row, [D]; if it `adds`, the sum of two, which is written too. Weights may count `from_one`."""
    row = tl.program_id(0).to(tl.int64)  # a prompt's gate may have more than 2^31 elements
    element = tl.arange(0, size_padded)
    mask = element < size
    kind: tl.constexpr = output.dtype.element_ty
    x = tl.load(tokens + row * tokens_row + element, mask=mask, other=0.0).to(tl.float32)
    if adds:
        x += tl.load(delta + row * delta_row + element, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(kind)
        tl.store(summed + row * size + element, rounded, mask=mask)
        x = rounded.to(tl.float32)
    x *= 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / size + epsilon)
    w = tl.load(weight + element, mask=mask, other=0.0).to(tl.float32)
    if from_one:  # Gemma's rounds once, Llama's twice
        x *= 1.0 + w
    else:
        x = x.to(kind).to(tl.float32) * w
    tl.store(output + row * size + element, x.to(kind), mask=mask)


@triton.jit
def rotate_kernel(
    query,
    key,
    cos,
    sin,
    rotated_query,
    rotated_key,
    query_row,
    query_head,
    key_row,
    key_head,
    cos_row,
    sin_row,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    half: tl.constexpr,
    half_padded: tl.constexpr,
    tile: tl.constexpr,
):
    """Rotate some of one token's heads, the query's and behind them the key's: dimension i goes with i + d/2."""
    row = tl.program_id(0).to(tl.int64)
    head, low = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, half_padded)
    kv_head, inside = head - num_heads, low < half
    of_query = (head < num_heads)[:, None] & inside[None, :]
    of_key = ((head >= num_heads) & (kv_head < num_kv_heads))[:, None] & inside[None, :]
    from_query = query + row * query_row + head[:, None] * query_head + low[None, :]
    from_key = key + row * key_row + kv_head[:, None] * key_head + low[None, :]
    # Every place is of one of them or of none: the other's load is of nothing.
    x = tl.load(from_query, mask=of_query, other=0.0).to(tl.float32)
    y = tl.load(from_query + half, mask=of_query, other=0.0).to(tl.float32)
    x += tl.load(from_key, mask=of_key, other=0.0).to(tl.float32)
    y += tl.load(from_key + half, mask=of_key, other=0.0).to(tl.float32)

    angle_cos, angle_sin = cos + row * cos_row + low, sin + row * sin_row + low
    cos_x = tl.load(angle_cos, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_y = tl.load(angle_cos + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_x = tl.load(angle_sin, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_y = tl.load(angle_sin + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    kind: tl.constexpr = query.dtype.element_ty
    new_x, new_y = (x * cos_x - y * sin_x).to(kind), (y * cos_y + x * sin_y).to(kind)

    to_query = rotated_query + (row * num_heads + head[:, None]) * (2 * half) + low[None, :]
    to_key = rotated_key + (row * num_kv_heads + kv_head[:, None]) * (2 * half) + low[None, :]
    tl.store(to_query, new_x, mask=of_query)
    tl.store(to_query + half, new_y, mask=of_query)
    tl.store(to_key, new_x, mask=of_key)
    tl.store(to_key + half, new_y, mask=of_key)


@triton.jit
def gate_kernel(
    gate,
    up,
    output,
    gate_row,
    up_row,
    gelu: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
):
    """Multiply a block of one row's `up` by its activated `gate`: by SiLU, or by GELU's approximation with tanh."""
    row = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * block + tl.arange(0, block)
    mask = element < size
    kind: tl.constexpr = output.dtype.element_ty
    x = tl.load(gate + row * gate_row + element, mask=mask, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh(z)) is sigmoid(2z), and 1.5957... is 2 sqrt(2 / pi).
    steep = 1.5957691216057308 * (x + 0.044715 * x * x * x) if gelu else x
    small = tl.exp(-tl.abs(steep))  # never overflows
    activated = (x * tl.where(steep >= 0.0, 1.0, small) / (1.0 + small)).to(kind).to(tl.float32)
    factor = tl.load(up + row * up_row + element, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + row * size + element, (activated * factor).to(kind), mask=mask)
