"""Compiles the kernels for GPUs that need not be there: `python -m tests.decode.compile_kernels`.

A process of its own, because kernels that were defined to be interpreted cannot be compiled.
"""

import os
from functools import partial

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from common.model import fused_kernels
from services.decode import paged_kernels

_AMPERE, _HOPPER = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
_SHARED_MEMORY = 64 * 1024
_INT32 = ("tables", "first", "length")
_FLOAT32 = ("partial", "logsumexp")


def compile_kernel(
    kernel: triton.JITFunction, dtype: str, *, num_warps: int = 4, aligned: bool = True, **constants: int
) -> None:
    """Compile for tensors of a type whose addresses and strides are multiples of 16, or of nothing."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith(("_row", "_head")):
            return "i32"
        if name in ("scaling", "epsilon"):
            return "fp32"
        return "*i32" if name in _INT32 else "*fp32" if name in _FLOAT32 else f"*{dtype}"

    names = kernel.arg_names
    sixteens = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if kind(name)[0] == "*" or name.endswith(("_row", "_head"))
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    for target in (_AMPERE, _HOPPER):
        source = ASTSource(kernel, {name: kind(name) for name in names}, values, sixteens if aligned else {})
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": 2})
        assert compiled.metadata.shared <= _SHARED_MEMORY
        assert compiled.asm["cubin"]


def compile_paged_kernels() -> None:
    """Compile those of attention."""
    head = {"head_dim": 80, "head_dim_padded": 128, "splits": 4}
    compile_kernel(
        paged_kernels.attend_share_kernel, "bf16", group=3, group_padded=16, tile=64, block_tokens=16, **head
    )
    compile_kernel(paged_kernels.merge_shares_kernel, "bf16", **head)
    compile_kernel(paged_kernels.store_newest_kernel, "bf16", size=160, size_padded=256, head_dim=80, block_tokens=16)


def compile_fused_kernels(dtype: str, *, aligned: bool) -> None:
    """Compile those between a layer's products."""
    norm = partial(compile_kernel, fused_kernels.norm_kernel, dtype, aligned=aligned)
    norm(num_warps=1, size=128, size_padded=128, adds=False, from_one=True)
    norm(num_warps=2, size=576, size_padded=1024, adds=True, from_one=False)
    norm(num_warps=16, size=16384, size_padded=16384, adds=True, from_one=True)
    rotate = partial(compile_kernel, fused_kernels.rotate_kernel, dtype, aligned=aligned, num_heads=32, num_kv_heads=8)
    rotate(half=40, half_padded=64, tile=8)
    rotate(half=128, half_padded=128, tile=4)
    for gelu in (False, True):
        compile_kernel(fused_kernels.gate_kernel, dtype, aligned=aligned, gelu=gelu, size=14336, block=1024)


if __name__ == "__main__":
    compile_paged_kernels()
    compile_fused_kernels("bf16", aligned=True)
    compile_fused_kernels("bf16", aligned=False)
    compile_fused_kernels("fp16", aligned=True)
    compile_fused_kernels("fp32", aligned=True)
