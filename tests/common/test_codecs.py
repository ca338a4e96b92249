"""The codecs against a naive reference, and the sizes that they promise."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import InvalidRequestError, SkeletonError
from common.model.decoder import DecoderModel, ModelSpec
from common.skeleton import quantise, wire
from common.skeleton.codecs import Codec, Split
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec

HEADS, SIZE = 2, 8
LEVELS = {"int8": 256, "int4": 16}
LARGEST = torch.finfo(torch.float32).max


def codec(name: str, sinks: int = 4, window: int = 32, heads: int = HEADS, size: int = SIZE) -> Codec:
    return Codec(name, torch.bfloat16, heads, size, sinks, window)


def bf16(number: float) -> bytes:
    """Round a positive number up to bfloat16."""
    upper = struct.unpack("<I", struct.pack("<f", number))[0]
    return struct.pack("<H", -(-upper // 65536))


class Naive:
    """One group, by the formulas, in float32 as the real one."""

    def __init__(self, numbers: list[float], levels: int) -> None:
        low, high = np.float32(min(numbers)), np.float32(max(numbers))
        steps, largest = np.float32(levels - 2), max(abs(low), abs(high))
        wanted = max(high / steps - low / steps, largest / np.float32(32767), np.float32(2.0**-126))
        self.scale = bf16(wanted)
        scale = np.float32(struct.unpack("<f", b"\0\0" + self.scale)[0])
        self.zero = math.floor(low / scale)
        self.codes = [
            min(max(int(np.round(np.float32(number) / scale)) - self.zero, 0), levels - 1) for number in numbers
        ]
        self.decoded = [float(np.float32(code + self.zero) * scale) for code in self.codes]


def naive(kind: str, name: str, tensor: torch.Tensor, split: Split) -> tuple[bytes, torch.Tensor]:
    """Return a payload and what is read from it, number by number."""
    first, last = split.first, split.first + split.quantised
    numbers = tensor.float().tolist()
    decoded = tensor.bfloat16().float()
    edges = torch.cat((tensor[:first], tensor[last:])).bfloat16().view(torch.int16).flatten().tolist()
    codes = torch.zeros(split.quantised, HEADS, SIZE, dtype=torch.int)
    scales, zeros = b"", b""
    for place in places(kind, first, last):
        group = Naive([numbers[t][h][c] for t, h, c in place], LEVELS[name])
        scales += group.scale
        zeros += struct.pack("<h", group.zero)
        for (t, h, c), code, value in zip(place, group.codes, group.decoded, strict=True):
            codes[t - first, h, c] = code
            decoded[t, h, c] = value
    flat = codes.flatten().tolist()
    if name == "int4":
        flat = [low | high << 4 for low, high in zip(flat[::2], flat[1::2], strict=True)]
    return struct.pack(f"<{len(edges)}h", *edges) + scales + zeros + bytes(flat), decoded


def places(kind: str, first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """Return the groups of a chunk in their order, each the indices of its numbers."""
    if kind == "values":
        return [[(t, h, c) for c in range(SIZE)] for t in range(first, last) for h in range(HEADS)]
    return [
        [(t, h, c) for t in range(start, min(start + 64, last))]
        for start in range(first, last, 64)
        for h in range(HEADS)
        for c in range(SIZE)
    ]


def numbers(kind: str, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    noise = torch.randn(tokens, HEADS, SIZE, generator=generator)
    return {
        "normal": noise,
        "bfloat16": noise.bfloat16(),
        "float16": noise.half(),
        "offset": noise + torch.tensor([0, 300, -300, 5e4, 0.01, -2, 1e6, 0]),
        "outliers": noise * torch.tensor([1, 100, 1, 1e-3, 1, 1e3, 1, 1]),
        "constant": torch.full((tokens, HEADS, SIZE), -3.7),
        "zeros": torch.zeros(tokens, HEADS, SIZE),
        "tiny": noise * 1e-39,
        "huge": noise * 1e30,
        "one sided": noise.abs() + 1,
        "extreme": torch.where(noise > 0, LARGEST, -LARGEST).clamp(-3.38e38, 3.38e38),
    }[kind]


INPUTS = (
    "normal",
    "bfloat16",
    "float16",
    "offset",
    "outliers",
    "constant",
    "zeros",
    "tiny",
    "huge",
    "one sided",
    "extreme",
)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("content", INPUTS)
def test_bytes_and_numbers_are_the_formulas(content: str, kind: str, name: str) -> None:
    for split in (Split(0, 1, 0), Split(3, 64, 2), Split(2, 150, 0), Split(0, 63, 5), Split(4, 0, 1)):
        tensor = numbers(content, split.tokens)
        data = codec(name).encode(kind, tensor, split)
        expected, decoded = naive(kind, name, tensor, split)
        assert data == expected
        assert torch.equal(codec(name).decode(kind, data, split), decoded.clamp(-LARGEST, LARGEST))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("content", [*INPUTS, "beyond bfloat16"])
def test_the_error_is_half_a_step_of_the_groups_range(content: str, kind: str, name: str) -> None:
    split = Split(0, 150, 0)
    tensor = numbers(content, 150) if content in INPUTS else numbers("extreme", 150).sign() * LARGEST
    decoded = codec(name).decode(kind, codec(name).encode(kind, tensor, split), split)
    assert decoded.isfinite().all()
    exact = tensor.double()
    for group in places(kind, 0, 150):
        index = tuple(torch.tensor(group).T)
        inside, got = exact[index], decoded.double()[index]
        step = max((inside.max() - inside.min()) / (LEVELS[name] - 2), inside.abs().max() / 32767, 2.0**-126)
        assert (got - inside).abs().max() <= 0.51 * step * (1 + 2**-7), "a scale is at most 1/128 above the step"


@pytest.mark.parametrize("content", ["constant", "offset"])
def test_an_offset_costs_no_precision(content: str) -> None:
    split = Split(0, 128, 0)
    tensor = numbers(content, 128)
    decoded = codec("int8").decode("keys", codec("int8").encode("keys", tensor, split), split)
    error, rounding = (decoded - tensor).abs(), (tensor.bfloat16().float() - tensor).abs()
    far = tensor.abs() > 1000 if content == "offset" else torch.ones_like(tensor, dtype=torch.bool)
    assert error[far].mean() < rounding[far].mean() / 20, "where bfloat16 itself is coarse"


def test_zeros_stay_zeros() -> None:
    split = Split(0, 70, 0)
    data = codec("int4").encode("values", torch.zeros(70, HEADS, SIZE), split)
    assert not codec("int4").decode("values", data, split).any()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_unquantised_tokens_are_exact_in_bfloat16(name: str) -> None:
    tensor = numbers("offset", 140)
    for kind in ("keys", "values"):
        data = codec(name).encode(kind, tensor, Split(4, 129, 7))
        decoded = codec(name).decode(kind, data, Split(4, 129, 7))
        for edge in (slice(None, 4), slice(-7, None)):
            assert torch.equal(decoded[edge], tensor[edge].bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_receiver_chooses_the_dtype(dtype: torch.dtype) -> None:
    split, tensor = Split(1, 100, 2), numbers("normal", 103)
    for name in CODECS:
        sent = codec(name)
        data = sent.encode("keys", tensor, split)
        exact, chosen = sent.decode("keys", data, split), sent.decode("keys", data, split, dtype=dtype)
        assert chosen.dtype == dtype
        assert torch.equal(chosen, exact.to(dtype))


def test_a_number_near_a_narrow_dtypes_end_does_not_overflow() -> None:
    tensor = torch.full((64, HEADS, SIZE), 65504.0)
    tensor[::2] = -65504.0
    data = codec("int4").encode("keys", tensor, Split(0, 64, 0))
    assert codec("int4").decode("keys", data, Split(0, 64, 0), dtype=torch.float16).isfinite().all()


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token", [0, 1, 64, 80, 101])
def test_numbers_that_are_not_finite_are_refused(
    token: int, dtype: torch.dtype, number: float, kind: str, name: str
) -> None:
    tensor = numbers("normal", 102).to(dtype)
    tensor[token, 1, 3] = number
    with pytest.raises(SkeletonError, match=f"{kind} that are not finite cannot cross as {name}"):
        codec(name).encode(kind, tensor, Split(1, 100, 1))


def test_scales_are_the_positive_normal_numbers() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    limits = torch.finfo(torch.bfloat16)
    expected = (every >= limits.tiny) & (every <= limits.max)
    assert [quantise.are_scales(scale) for scale in every.split(1)] == expected.tolist()
    assert quantise.are_scales(every[expected])
    assert quantise.are_scales(every[:0])
    assert not quantise.are_scales(every[every.isfinite()])


@pytest.mark.parametrize(
    ("layer_tokens", "sinks", "window", "edges"),
    [
        (1000, 4, 32, (4, 32)),
        (432, 4, 32, (4, 32)),
        (431, 4, 32, (4, 31)),
        (103, 4, 32, (4, 4)),
        (48, 4, 32, (4, 0)),
        (41, 4, 32, (3, 0)),
        (11, 4, 32, (0, 0)),
        (1, 4, 32, (0, 0)),
        (120, 0, 32, (0, 10)),
        (120, 50, 1, (10, 0)),
    ],
)
def test_sinks_and_window_stay_unquantised_up_to_a_twelfth(
    layer_tokens: int, sinks: int, window: int, edges: tuple[int, int]
) -> None:
    assert codec("int8", sinks, window).edges(layer_tokens) == edges
    assert codec("raw", sinks, window).edges(layer_tokens) == (layer_tokens, 0)


def test_chunks_split_a_layer_without_a_gap() -> None:
    sent = codec("int8")
    for step in (1, 3, 40, 200):
        marks = ""
        for start in range(0, 120, step):
            split = sent.split(120, start, min(start + step, 120))
            marks += "f" * split.first + "q" * split.quantised + "l" * split.last
        assert marks == "f" * 4 + "q" * 110 + "l" * 6


@pytest.fixture
def spec(tiny: Callable[[str], DecoderModel]) -> ModelSpec:
    """SmolLM2-135M's geometry."""
    return replace(tiny("llama").spec, num_layers=30, num_kv_heads=3, head_dim=64, windows=(None,) * 30)


def share(spec: ModelSpec, prompt_tokens: int, selection: Selection) -> float:
    """Return a skeleton's size at 10% KV, by the formula, as a share of the whole cache."""
    sent, kept = Codec.of(spec, prompt_tokens, selection), math.ceil(0.1 * prompt_tokens)
    return 30 * sent.num_bytes(sent.split(kept, 0, kept)) / spec.full_kv_bytes(prompt_tokens)


@pytest.mark.parametrize("window", [32, 37])
def test_a_skeleton_takes_its_share_of_the_cache_at_every_length(window: int, spec: ModelSpec) -> None:
    int8, int4 = (Selection(codec=name, window_tokens=window) for name in ("int8", "int4"))
    assert max(share(spec, tokens, int8) for tokens in range(512, 8193)) <= 0.06
    assert max(share(spec, tokens, int4) for tokens in range(1024, 8193)) <= 0.035


@pytest.mark.parametrize(("name", "most"), [("int8", 0.06), ("int4", 0.035), ("raw", 0.101)])
@pytest.mark.parametrize("prompt_tokens", [1024, 1391, 2048, 5555, 8192])
def test_messages_take_their_share_of_the_cache(prompt_tokens: int, name: str, most: float, spec: ModelSpec) -> None:
    selection = Selection(codec=name)
    skeleton = SkeletonSpec.of(spec, range(prompt_tokens), selection)
    tensors = torch.randn(2, selection.kv_budget(prompt_tokens), 3, 64)
    layer_bytes = sum(message.ByteSize() for message in wire.layer_chunks(skeleton, 29, *tensors, None))
    assert 30 * layer_bytes <= most * spec.full_kv_bytes(prompt_tokens)


@pytest.mark.parametrize("name", CODECS)
def test_a_prompt_that_is_kept_whole_crosses_exactly(name: str, spec: ModelSpec) -> None:
    for selection, tokens in ((Selection(codec=name), 128), (Selection(method="full", codec=name), 5000)):
        sent = Codec.of(spec, tokens, selection)
        assert (sent.name, sent.dtype) == ("raw", torch.float32)
    tensor, split = torch.randn(20, 3, 64), sent.split(20, 0, 20)
    assert torch.equal(sent.decode("keys", sent.encode("keys", tensor, split), split), tensor)


def test_two_codes_a_byte_need_heads_of_an_even_size(spec: ModelSpec) -> None:
    odd = replace(spec, head_dim=63)
    with pytest.raises(InvalidRequestError, match="even") as caught:
        Codec.of(odd, 1000, Selection(codec="int4"))
    assert caught.value.param == "structkv.codec"
    assert Codec.of(odd, 1000, Selection(codec="int8")).name == "int8"
    assert Codec.of(odd, 100, Selection(codec="int4")).name == "raw", "whole"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_gpu_writes_and_reads_the_same(name: str) -> None:
    cuda = torch.device("cuda")
    for kind in ("keys", "values"):
        tensor, split = numbers("offset", 157), Split(3, 150, 4)
        data = codec(name).encode(kind, tensor, split)
        assert codec(name).encode(kind, tensor.to(cuda), split) == data
        on_gpu = codec(name).decode(kind, data, split, device=cuda)
        assert on_gpu.device.type == "cuda"
        assert torch.equal(on_gpu.cpu(), codec(name).decode(kind, data, split))
