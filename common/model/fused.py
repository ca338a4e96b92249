"""What a decoder layer computes between its products, each part by one Triton kernel.

On a GPU these parts are bound by launches when there are few tokens and by memory when there are many: a kernel that
reads and writes everything once serves both. Tensors are float32, bfloat16 or float16, all of a call alike; leading
dimensions are rows, which may be any distance apart.
"""

import torch
import triton
from torch import Tensor

from common.model.elementwise import Activation, RMSNorm
from common.model.fused_kernels import gate_kernel, norm_kernel, rotate_kernel

_GATE_BLOCK = 1024
_ROTATED_TILE = 512
"""Pairs of dimensions that a program rotates."""


class FusedElementwise:
    """`Elementwise` by Triton's kernels."""

    def norm(self, tokens: Tensor, norm: RMSNorm) -> Tensor:
        """[..., D] to [..., D], contiguous."""
        return _normalise(tokens, None, norm)[1]

    def add_norm(self, hidden: Tensor, delta: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """[..., D] and [..., D] to their sum, as it is rounded, and that normalised; both contiguous."""
        return _normalise(hidden, delta, norm)

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H, d] and [B, T, G, d], by [B, T, d], to the same, contiguous; rounded once."""
        queries, keys = query.flatten(0, 1), key.flatten(0, 1)
        cosines, sines = _rows(cos), _rows(sin)
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[1]
        assert head_dim % 2 == 0
        assert keys.shape == (num_rows, num_kv_heads, head_dim)
        assert cosines.shape == sines.shape == (num_rows, head_dim)
        assert all(tensor.stride(-1) == 1 for tensor in (queries, keys, cosines, sines))
        rotated_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        rotated_key = torch.empty(key.shape, dtype=key.dtype, device=key.device)
        half = head_dim // 2
        half_padded = triton.next_power_of_2(half)
        tile = max(1, _ROTATED_TILE // half_padded)
        with torch.cuda.device_of(query):
            rotate_kernel[(num_rows, triton.cdiv(num_heads + num_kv_heads, tile))](
                queries, keys, cosines, sines, rotated_query, rotated_key,
                queries.stride(0), queries.stride(1), keys.stride(0), keys.stride(1),
                cosines.stride(0), sines.stride(0),
                num_heads=num_heads, num_kv_heads=num_kv_heads, half=half, half_padded=half_padded, tile=tile,
            )  # fmt: skip
        return rotated_query, rotated_key

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """[..., I] and [..., I] to activation(gate) * up, contiguous."""
        assert gate.shape == up.shape
        gates, ups = _rows(gate), _rows(up)
        num_rows, size = gates.shape
        output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        with torch.cuda.device_of(gate):
            gate_kernel[(num_rows, triton.cdiv(size, _GATE_BLOCK))](
                gates, ups, output, gates.stride(0), ups.stride(0),
                gelu=activation == "gelu_tanh", size=size, block=_GATE_BLOCK,
            )  # fmt: skip
        return output


def _normalise(tokens: Tensor, delta: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """Return the sum of tokens and delta, [..., D], or the tokens where there is no delta; and that normalised."""
    rows = _rows(tokens)
    added = rows if delta is None else _rows(delta)
    num_rows, size = rows.shape
    assert added.shape == rows.shape
    assert norm.weight.shape == (size,)
    assert norm.weight.is_contiguous()
    output = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    summed = tokens if delta is None else torch.empty_like(output)
    size_padded = triton.next_power_of_2(size)
    with torch.cuda.device_of(tokens):
        norm_kernel[(num_rows,)](
            rows, added, norm.weight, summed, output, norm.epsilon.item(), rows.stride(0), added.stride(0),
            adds=delta is not None, from_one=norm.from_one, size=size, size_padded=size_padded,
            num_warps=min(16, max(1, size_padded // 512)),
        )  # fmt: skip
    return summed, output


def _rows(tensor: Tensor) -> Tensor:
    """[..., D] to [rows, D], a view if possible, whose last dimension is contiguous."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
