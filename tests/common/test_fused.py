"""The fused kernels against the formulas in float32, and the modules of transformers that they stand for.

On the CPU the kernels are interpreted; `tests/decode/compile_kernels.py` compiles them for GPUs. Tests marked `gpu`
run them.
"""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from common.model.elementwise import Elementwise, RMSNorm, TorchElementwise

if find_spec("triton") is None:
    pytest.skip("Triton is not there for this platform", allow_module_level=True)

from common.model.fused import FusedElementwise

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU")
gpu = pytest.mark.gpu
# The interpreter cuts float32 off to bfloat16 instead of rounding it.
KINDS = [
    pytest.param("cpu", torch.float32, marks=interpreted),
    pytest.param("cpu", torch.float16, marks=interpreted),
    pytest.param("cuda:0", torch.float32, marks=gpu),
    pytest.param("cuda:0", torch.float16, marks=gpu),
    pytest.param("cuda:0", torch.bfloat16, marks=gpu),
]
NAN = float("nan")

pytestmark = pytest.mark.parametrize(
    ("elementwise", "device", "dtype"),
    [
        *(
            pytest.param(FusedElementwise(), *kind.values, marks=kind.marks, id=f"fused-{kind.values}")
            for kind in KINDS
        ),
        *(
            pytest.param(TorchElementwise(), "cpu", dtype, id=f"torch-{dtype}")
            for dtype in (torch.float32, torch.float16)
        ),
    ],
)


def close(actual: Tensor, expected: Tensor, roundings: int = 1, floor: float = 1e-6) -> None:
    error = roundings * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.float(), expected.float(), rtol=error + floor, atol=error + floor)


def spread(tensor: Tensor) -> Tensor:
    """The same numbers in every other part of a larger tensor: rows are apart, with NaN between them."""
    wide = torch.cat((torch.full_like(tensor, NAN), tensor, torch.full_like(tensor, NAN)), dim=-1)
    return wide.chunk(3, dim=-1)[1]


def make_norm(form: str, size: int, device: str, dtype: torch.dtype) -> torch.nn.Module:
    module = (LlamaRMSNorm if form == "llama" else Gemma3RMSNorm)(size, eps=1e-5)
    module.weight.data.uniform_(0.5, 1.5)
    return module.to(device, dtype).requires_grad_(False)


@pytest.mark.parametrize("form", ["llama", "gemma"])
@pytest.mark.parametrize("size", [64, 576, 3840, 4096])
@pytest.mark.parametrize(("rows", "apart"), [(1, False), (3, True), (64, False)])
def test_a_norm_is_that_of_transformers(
    rows: int, size: int, form: str, apart: bool, elementwise: Elementwise, device: str, dtype: torch.dtype
) -> None:
    module = make_norm(form, size, device, dtype)
    tokens, delta = (torch.randn(rows, 1, size, device=device).mul(3).to(dtype) for _ in range(2))
    weight = module.weight.float() + (form == "gemma")

    def formula(x: Tensor) -> Tensor:
        return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5) * weight

    given, added = (spread(tokens), spread(delta)) if apart else (tokens, delta)
    before = given.clone(), added.clone()
    normed = elementwise.norm(given, RMSNorm.of(module))
    summed, normed_sum = elementwise.add_norm(given, added, RMSNorm.of(module))
    assert normed.dtype == summed.dtype == normed_sum.dtype == dtype
    assert torch.equal(given, before[0])
    assert torch.equal(added, before[1])
    assert torch.equal(summed, tokens + delta)
    close(normed, formula(tokens), 2)
    close(normed_sum, formula(tokens + delta), 2)
    close(normed, module(tokens), 2)
    close(normed_sum, module(tokens + delta), 2)


def test_a_norm_of_zeros_is_zeros(elementwise: Elementwise, device: str, dtype: torch.dtype) -> None:
    norm = RMSNorm.of(make_norm("llama", 64, device, dtype))
    assert elementwise.norm(torch.zeros(2, 3, 64, device=device, dtype=dtype), norm).count_nonzero() == 0


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 1), (64, 1), (2, 5)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3)])
def test_heads_are_rotated_as_by_transformers(
    batch: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    elementwise: Elementwise,
    device: str,
    dtype: torch.dtype,
) -> None:
    one = torch.randn(batch, tokens, heads + 2 * kv_heads, head_dim, device=device).to(dtype)  # as of one product
    query, key = one[:, :, :heads], one[:, :, heads : heads + kv_heads]
    angles = torch.randn(batch, 2 * tokens, head_dim, device=device)[:, :tokens]  # halves that differ show mistakes
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    cos, sin = spread(cos), spread(sin)
    rotated_query, rotated_key = elementwise.rotate(query, key, cos, sin)
    assert rotated_query.dtype == rotated_key.dtype == dtype
    expected = apply_rotary_pos_emb(query.float(), key.float(), cos.float(), sin.float(), unsqueeze_dim=2)
    close(rotated_query, expected[0], 4)
    close(rotated_key, expected[1], 4)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("size", [96, 1536, 14336])
@pytest.mark.parametrize(("rows", "apart"), [(1, False), (3, True), (64, False)])
def test_a_gate_is_activated_and_multiplied(
    rows: int, size: int, activation: str, apart: bool, elementwise: Elementwise, device: str, dtype: torch.dtype
) -> None:
    gate, up = (torch.randn(rows, 1, size, device=device).mul(4).to(dtype) for _ in range(2))
    if apart:
        gate, up = spread(gate), spread(up)
    gated = elementwise.gate(gate, up, activation)
    assert gated.dtype == dtype
    gate, up = gate.double(), up.double()
    activated = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    close(gated, activated * up, 2, floor=1e-5)  # torch's GELU loses the tail's digits


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_large_gates_do_not_overflow(
    activation: str, elementwise: Elementwise, device: str, dtype: torch.dtype
) -> None:
    gate = torch.tensor([[-6e4, -1e3, 0.0, 1e3, 6e4]], device=device, dtype=dtype)
    gated = elementwise.gate(gate, torch.ones_like(gate), activation)
    assert torch.equal(gated, gate.relu())
