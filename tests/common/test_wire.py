"""The skeleton's messages: what is sent arrives, and anything else is refused."""

from collections.abc import Callable, Iterator

import pytest
import torch

from common.errors import SkeletonError
from common.model.decoder import DecoderModel, ModelSpec
from common.pb import skeleton_pb2
from common.skeleton import wire
from common.skeleton.wire import SkeletonReader


@pytest.fixture
def spec(tiny: Callable[[str], DecoderModel]) -> ModelSpec:
    return tiny("gemma3_text").spec  # layers 0, 1, 3, 4 have a window of 24


def tensors(layer: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(layer)
    return tuple(torch.randn(9, 2, 16, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


def layers(spec: ModelSpec, until: int = 6) -> Iterator[skeleton_pb2.LayerChunk]:
    for layer in range(until):
        positions = torch.arange(40, 49) if spec.windows[layer] else None
        yield from wire.layer_chunks(layer, *tensors(layer), positions, torch.float32)


@pytest.fixture
def reader(spec: ModelSpec) -> SkeletonReader:
    reader = SkeletonReader(spec, 50, [9] * 6)
    reader.read_header(wire.header(spec, 50, torch.float32))
    return reader


@pytest.fixture(params=[1, 3 * 256, 1 << 20])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(wire, "CHUNK_BYTES", request.param)
    return request.param


def test_a_skeleton_arrives_as_it_was_sent(spec: ModelSpec, reader: SkeletonReader, chunk_bytes: int) -> None:
    received: dict[int, list[wire.Chunk]] = {layer: [] for layer in range(6)}
    for message in layers(spec):
        chunk = reader.read_chunk(skeleton_pb2.LayerChunk.FromString(message.SerializeToString()))
        received[chunk.layer].append(chunk)
    for layer, chunks in received.items():
        keys, values = tensors(layer)
        assert torch.equal(torch.cat([chunk.keys for chunk in chunks]), keys)
        assert torch.equal(torch.cat([chunk.values for chunk in chunks]), values)
        if spec.windows[layer]:
            assert [p for chunk in chunks for p in chunk.positions or ()] == list(range(40, 49))
    hidden = torch.randn(64)
    assert torch.equal(reader.read_result(wire.prompt_end(hidden, 3)), hidden)
    assert reader.kept_tokens == [9] * 6
    assert reader.num_bytes == 6 * 9 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_survive(dtype: torch.dtype) -> None:
    keys, _ = tensors(0, dtype)
    assert torch.equal(wire.from_bytes(wire.to_bytes(keys), dtype, (9, 2, 16)), keys)


def change(message: skeleton_pb2.LayerChunk, field: str, value: object) -> None:
    if field == "positions":
        message.positions[:] = value  # type: ignore[assignment]
    else:
        setattr(message, field, value)


@pytest.mark.parametrize("honest_checksum", [True, False])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", 1),
        ("layer", 6),
        ("token_start", 1),
        ("num_tokens", 0),
        ("num_tokens", 8),
        ("num_tokens", 2**32 - 1),
        ("layer_tokens", 10),
        ("layer_tokens", 8),
        ("keys", b""),
        ("keys", b"\0" * (9 * 2 * 16 * 4 + 4)),
        ("values", b"\0" * 8),
        ("positions", range(8)),
        ("positions", range(42, 51)),
        ("positions", [4] * 9),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(
    field: str, value: object, honest_checksum: bool, spec: ModelSpec, reader: SkeletonReader
) -> None:
    message = next(layers(spec))
    change(message, field, value)
    if honest_checksum:
        message.checksum = wire._checksum(message)
    with pytest.raises(SkeletonError):
        reader.read_chunk(message)


def test_every_flipped_bit_is_noticed(spec: ModelSpec, reader: SkeletonReader) -> None:
    message = next(layers(spec))
    for position in range(0, len(message.keys), 97):
        damaged = skeleton_pb2.LayerChunk()
        damaged.CopyFrom(message)
        damaged.keys = bytes(b ^ (i == position) for i, b in enumerate(message.keys))
        with pytest.raises(SkeletonError, match="checksum"):
            reader.read_chunk(damaged)


def test_a_missing_layer_is_noticed(spec: ModelSpec, reader: SkeletonReader) -> None:
    for message in layers(spec, until=5):
        reader.read_chunk(message)
    with pytest.raises(SkeletonError, match="ended in layer 5 of 6"):
        reader.read_result(wire.prompt_end(torch.randn(64), None))


def test_a_damaged_hidden_state_is_noticed(spec: ModelSpec, reader: SkeletonReader) -> None:
    for message in layers(spec):
        reader.read_chunk(message)
    result = wire.prompt_end(torch.randn(64), None)
    result.hidden_state = result.hidden_state[:-1] + b"\x7f"
    with pytest.raises(SkeletonError, match="hidden state"):
        reader.read_result(result)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("model_fingerprint", "other"),
        ("prompt_tokens", 51),
        ("num_layers", 7),
        ("num_kv_heads", 1),
        ("head_dim", 8),
        ("dtype", "float64"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(field: str, value: object, spec: ModelSpec) -> None:
    message = wire.header(spec, 50, torch.float32)
    setattr(message, field, value)
    with pytest.raises(SkeletonError):
        SkeletonReader(spec, 50, [9] * 6).read_header(message)


def test_a_chunk_before_the_header_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(SkeletonError, match="before the header"):
        SkeletonReader(spec, 50, [9] * 6).read_chunk(next(layers(spec)))
