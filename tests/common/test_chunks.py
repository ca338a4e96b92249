"""A layer that is encoded whole and cut is what its chunks, encoded one by one, are."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from common.errors import SkeletonError
from common.model.decoder import DecoderModel, ModelSpec
from common.skeleton import codecs, wire
from common.skeleton.chunks import chunk_spans
from common.skeleton.codecs import GROUP_TOKENS, Codec
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec

HEADS, SIZE = 3, 10
SIZES = (1, 700, 5000, 20_000, 1 << 20)
TOKENS = (1, 2, 11, 63, 64, 65, 130, 427, 1000)
EDGES = ((4, 32), (0, 0), (70, 1), (1, 100))


def codec(name: str, edges: tuple[int, int] = (4, 32), dtype: torch.dtype = torch.bfloat16) -> Codec:
    return Codec(name, dtype, HEADS, SIZE, *edges)


def numbers(tokens: int, dtype: torch.dtype, heads: int = HEADS, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    scale = torch.logspace(-2, 3, size)
    return (torch.randn(tokens, heads, size, generator=generator) * scale + scale).to(dtype)


@pytest.mark.parametrize("num_bytes", SIZES)
@pytest.mark.parametrize("name", CODECS)
def test_chunks_cover_a_layer_in_whole_groups_of_limited_size(name: str, num_bytes: int) -> None:
    for edges in EDGES:
        for tokens in TOKENS:
            sent = codec(name, edges)
            spans = chunk_spans(sent, tokens, num_bytes)
            assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == tokens
            splits = [sent.split(tokens, *span) for span in spans]
            quantised = [split.quantised for split in splits if split.quantised]
            assert all(count % GROUP_TOKENS == 0 for count in quantised[:-1])
            for split in splits:
                one_group = split.quantised <= GROUP_TOKENS and not split.first + split.last
                assert sent.num_bytes(split) <= num_bytes or one_group or split.tokens == 1
                assert split.tokens > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("name", CODECS)
def test_cut_from_the_whole_is_encoded_alone(
    name: str, kind: codecs.Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "_CPU_BLOCK_BYTES", 4 * HEADS * SIZE * 2 * GROUP_TOKENS)  # two groups at a time
    for edges in EDGES:
        for tokens in TOKENS:
            sent, tensor = codec(name, edges), numbers(tokens, dtype)
            whole = sent.payload(kind, tensor, sent.split(tokens, 0, tokens)).numpy().data
            for num_bytes in SIZES:
                for start, end in chunk_spans(sent, tokens, num_bytes):
                    alone = sent.encode(kind, tensor[start:end], sent.split(tokens, start, end))
                    assert sent.cut(kind, whole, tokens, start, end) == alone


@pytest.fixture
def skeleton(tiny: Callable[[str], DecoderModel]) -> Callable[[str], SkeletonSpec]:
    def of(name: str) -> SkeletonSpec:
        spec: ModelSpec = replace(tiny("llama").spec, num_kv_heads=HEADS, head_dim=SIZE, windows=(400,) * 6)
        return SkeletonSpec.of(spec, range(4000), Selection(codec=name))

    return of


def messages(skeleton: SkeletonSpec, device: str, keys: torch.Tensor, values: torch.Tensor) -> list[bytes]:
    positions = torch.arange(3600, 3600 + len(keys)).to(device)
    chunks = wire.layer_chunks(skeleton, 2, keys.to(device), values.to(device), positions)
    return [chunk.SerializeToString() for chunk in chunks]


@pytest.mark.parametrize("name", CODECS)
def test_a_layers_size_is_its_messages(name: str, skeleton: Callable[[str], SkeletonSpec]) -> None:
    sent, tensor = skeleton(name), numbers(400, torch.bfloat16)
    layer = wire.EncodedLayer(sent, 0, tensor, tensor, None)
    assert layer.has_arrived
    chunks = list(wire.layer_chunks(sent, 0, tensor, tensor, None))
    assert layer.num_bytes == sum(len(chunk.keys) + len(chunk.values) for chunk in chunks)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("token", [0, 50, 399])
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_a_number_that_is_not_finite_stops_the_whole_layer(
    kind: str, token: int, name: str, skeleton: Callable[[str], SkeletonSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CHUNK_BYTES", 3000)
    tensors = {"keys": numbers(400, torch.bfloat16), "values": numbers(400, torch.bfloat16)}
    tensors[kind][token, 1, 3] = torch.nan
    with pytest.raises(SkeletonError, match=f"{kind} that are not finite"):
        next(wire.layer_chunks(skeleton(name), 0, **tensors, positions=None))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CODECS)
def test_a_gpu_writes_the_messages_of_a_cpu(
    name: str, dtype: torch.dtype, skeleton: Callable[[str], SkeletonSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_bytes in SIZES:
        monkeypatch.setattr(wire, "CHUNK_BYTES", num_bytes)
        for tokens in TOKENS[:-1]:
            tensors = numbers(tokens, dtype), numbers(tokens, dtype).flip(0)
            assert messages(skeleton(name), "cuda", *tensors) == messages(skeleton(name), "cpu", *tensors)
