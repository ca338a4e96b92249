"""Compiles the paged kernels for a GPU that need not be there: `python -m tests.decode.compile_kernels`.

A process of its own, because kernels that were defined to be interpreted cannot be compiled.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.decode import paged_kernels

_AMPERE = GPUTarget("cuda", 80, 32)
_SHARED_MEMORY = 64 * 1024
_STRIDES = ("query_row", "query_head", "table_row", "key_row", "key_head", "value_row", "value_head")
_INT32 = ("tables", "first", "length")
_FLOAT32 = ("partial", "logsumexp")


def compile_kernel(kernel: triton.JITFunction, dtype: str, **constants: int) -> None:
    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in _STRIDES:
            return "i32"
        if name == "scaling":
            return "fp32"
        return "*i32" if name in _INT32 else "*fp32" if name in _FLOAT32 else f"*{dtype}"

    names = kernel.arg_names
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if kind(name)[0] == "*" or name in _STRIDES
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, {name: kind(name) for name in names}, values, aligned)
    compiled = triton.compile(source, target=_AMPERE, options={"num_warps": 4, "num_stages": 2})
    assert compiled.metadata.shared <= _SHARED_MEMORY
    assert compiled.asm["cubin"]


if __name__ == "__main__":
    head = {"head_dim": 80, "head_dim_padded": 128, "splits": 4}
    compile_kernel(
        paged_kernels.attend_share_kernel, "bf16", group=3, group_padded=16, tile=64, block_tokens=16, **head
    )
    compile_kernel(paged_kernels.merge_shares_kernel, "bf16", **head)
    compile_kernel(paged_kernels.store_newest_kernel, "bf16", size=160, size_padded=256, head_dim=80, block_tokens=16)
