"""The skeleton's messages: what is sent arrives, and anything else is refused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from common.errors import SkeletonError
from common.model.decoder import DecoderModel, ModelSpec
from common.pb import skeleton_pb2
from common.skeleton import tensor_bytes, wire
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import SkeletonReader

WHOLE = Selection(method="full")


@pytest.fixture
def spec(tiny: Callable[[str], DecoderModel]) -> ModelSpec:
    return tiny("gemma3_text").spec  # layers 0, 1, 3, 4 have a window of 24


def of(spec: ModelSpec, prompt_tokens: int, selection: Selection) -> SkeletonSpec:
    return SkeletonSpec.of(spec, range(prompt_tokens), selection)


def tensors(layer: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(layer)
    return tuple(torch.randn(9, 2, 16, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


def layers(spec: ModelSpec, until: int = 6) -> Iterator[skeleton_pb2.LayerChunk]:
    for layer in range(until):
        positions = torch.arange(40, 49) if spec.windows[layer] else None
        yield from wire.layer_chunks(of(spec, 50, WHOLE), layer, *tensors(layer), positions)


@pytest.fixture
def reader(spec: ModelSpec) -> SkeletonReader:
    reader = SkeletonReader(of(spec, 50, WHOLE), [9] * 6)
    reader.read_header(wire.header(of(spec, 50, WHOLE)))
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
    assert torch.equal(reader.read_result(wire.prompt_end(reader.skeleton, hidden, 3)), hidden)
    assert reader.kept_tokens == [9] * 6
    assert reader.num_bytes == 6 * 9 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_survive(dtype: torch.dtype) -> None:
    keys, _ = tensors(0, dtype)
    assert torch.equal(tensor_bytes.from_bytes(tensor_bytes.to_bytes(keys), dtype, (9, 2, 16)), keys)


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
        message.checksum = wire.chunk_checksum(reader.skeleton, message, message.keys, message.values)
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
        reader.read_result(wire.prompt_end(reader.skeleton, torch.randn(64), None))


def test_a_damaged_hidden_state_is_noticed(spec: ModelSpec, reader: SkeletonReader) -> None:
    for message in layers(spec):
        reader.read_chunk(message)
    result = wire.prompt_end(reader.skeleton, torch.randn(64), None)
    result.hidden_state = result.hidden_state[:-1] + b"\x7f"
    with pytest.raises(SkeletonError, match="checksum of the result"):
        reader.read_result(result)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1),
        ("model_fingerprint", "other"),
        ("prompt_tokens", 51),
        ("num_layers", 7),
        ("num_kv_heads", 1),
        ("head_dim", 8),
        ("dtype", "float64"),
        ("codec", "int8"),
        ("codec", ""),
    ],
)
def test_a_header_that_does_not_fit_is_refused(field: str, value: object, spec: ModelSpec) -> None:
    message = wire.header(of(spec, 50, WHOLE))
    setattr(message, field, value)
    with pytest.raises(SkeletonError):
        SkeletonReader(of(spec, 50, WHOLE), [9] * 6).read_header(message)


def test_a_chunk_before_the_header_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(SkeletonError, match="before the header"):
        SkeletonReader(of(spec, 50, WHOLE), [9] * 6).read_chunk(next(layers(spec)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_prompt_crosses_in_the_senders_own_precision(dtype: torch.dtype, spec: ModelSpec) -> None:
    sender = of(replace(spec, dtype=dtype), 50, WHOLE)
    reader = SkeletonReader(of(spec, 50, WHOLE), [9] * 6)
    reader.read_header(wire.header(sender))
    keys, values = tensors(0, dtype)
    chunk = reader.read_chunk(next(wire.layer_chunks(sender, 0, keys, values, torch.arange(9))))
    assert chunk.keys.dtype == dtype
    assert torch.equal(chunk.keys, keys)


class TestQuantised:
    """A skeleton of 150 tokens a layer from a prompt of 1,500; layer 2 has full attention, but none is special here."""

    KEPT = 150

    @pytest.fixture(params=["int8", "int4"])
    def selection(self, request: pytest.FixtureRequest) -> Selection:
        return Selection(codec=request.param)

    @pytest.fixture
    def skeleton(self, spec: ModelSpec, selection: Selection) -> SkeletonSpec:
        return of(spec, 1500, selection)

    @pytest.fixture
    def spec(self, tiny: Callable[[str], DecoderModel]) -> ModelSpec:
        return tiny("llama").spec

    @pytest.fixture
    def reader(self, skeleton: SkeletonSpec) -> SkeletonReader:
        reader = SkeletonReader(skeleton, [self.KEPT] * 6)
        reader.read_header(wire.header(skeleton))
        return reader

    @pytest.fixture
    def kept(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return torch.randn(150, 2, 16, generator=generator), torch.randn(150, 2, 16, generator=generator)

    @pytest.fixture
    def message(self, skeleton: SkeletonSpec, kept: tuple[torch.Tensor, torch.Tensor]) -> skeleton_pb2.LayerChunk:
        (message,) = wire.layer_chunks(skeleton, 0, *kept, None)
        return message

    @pytest.mark.parametrize("limit", [1, 3000, 1 << 20])
    def test_arrives_in_chunks_of_limited_size(
        self,
        limit: int,
        skeleton: SkeletonSpec,
        reader: SkeletonReader,
        kept: tuple[torch.Tensor, torch.Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(wire, "CHUNK_BYTES", limit)
        sent = 0
        for layer in range(6):
            messages = list(wire.layer_chunks(skeleton, layer, *kept, None))
            sizes = [len(message.keys) + len(message.values) for message in messages]
            sent += sum(sizes)
            for size, message in zip(sizes, messages, strict=True):
                split = skeleton.codec.split(150, message.token_start, message.token_start + message.num_tokens)
                assert size <= limit or message.num_tokens == 1 or split == (0, split.quantised, 0)
                assert size <= limit or split.quantised <= 64
            assert len(messages) == 1 if limit > 3000 else len(messages) > 1
            chunks = [reader.read_chunk(message) for message in messages]
            for got, original in zip(
                (torch.cat([c.keys for c in chunks]), torch.cat([c.values for c in chunks])), kept, strict=True
            ):
                assert torch.allclose(got, original, rtol=0, atol=0.02 if skeleton.codec.name == "int8" else 0.3)
                assert torch.equal(got[:4], original[:4].bfloat16().float()), "sinks"
                assert torch.equal(got[-8:], original[-8:].bfloat16().float()), "what is left of a twelfth"
        reader.read_result(wire.prompt_end(reader.skeleton, torch.randn(64), None))
        assert reader.kept_tokens == [150] * 6
        assert reader.num_bytes == sent

    def test_comes_as_the_receiver_wants_it(self, skeleton: SkeletonSpec, message: skeleton_pb2.LayerChunk) -> None:
        reader = SkeletonReader(skeleton, [self.KEPT] * 6, device=torch.device("cpu"), dtype=torch.bfloat16)
        reader.read_header(wire.header(skeleton))
        assert reader.read_chunk(message).keys.dtype == torch.bfloat16

    @pytest.mark.parametrize("field", ["keys", "values"])
    def test_any_other_length_is_refused(
        self, field: str, reader: SkeletonReader, message: skeleton_pb2.LayerChunk
    ) -> None:
        data = getattr(message, field)
        lengths = {0, 1, len(data) - 64, len(data) - 2, len(data) - 1, len(data) + 1, len(data) + 2, 2 * len(data)}
        for length in lengths | {150 * 2 * 16 * size for size in (1, 2, 4)}:
            setattr(message, field, (data * 4)[:length])
            message.checksum = wire.chunk_checksum(reader.skeleton, message, message.keys, message.values)
            with pytest.raises(SkeletonError, match="bytes for"):
                reader.read_chunk(message)

    @pytest.mark.parametrize("field", ["keys", "values"])
    def test_every_flipped_bit_is_noticed(
        self, field: str, reader: SkeletonReader, message: skeleton_pb2.LayerChunk
    ) -> None:
        data = getattr(message, field)
        for position in range(0, len(data), 41):
            for bit in range(8):
                setattr(message, field, bytes(b ^ ((i == position) << bit) for i, b in enumerate(data)))
                with pytest.raises(SkeletonError, match="checksum"):
                    reader.read_chunk(message)

    @pytest.mark.parametrize("field", ["keys", "values"])
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-40])
    @pytest.mark.parametrize("place", ["first", "last"])
    def test_what_is_no_scale_is_refused_with_an_honest_checksum(
        self,
        field: str,
        number: float,
        place: str,
        reader: SkeletonReader,
        message: skeleton_pb2.LayerChunk,
    ) -> None:
        edges = 12 * 2 * 16 * 2
        scales = (3 * 2 * 16 if field == "keys" else 138 * 2) * 2
        data = bytearray(getattr(message, field))
        offset = edges if place == "first" else edges + scales - 2
        data[offset : offset + 2] = tensor_bytes.to_bytes(torch.tensor([number]).bfloat16())
        setattr(message, field, bytes(data))
        message.checksum = wire.chunk_checksum(reader.skeleton, message, message.keys, message.values)
        with pytest.raises(SkeletonError, match="not finite"):
            reader.read_chunk(message)

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_an_unquantised_number_that_is_not_finite_is_refused(
        self, number: float, reader: SkeletonReader, message: skeleton_pb2.LayerChunk
    ) -> None:
        message.keys = tensor_bytes.to_bytes(torch.tensor([number]).bfloat16()) + message.keys[2:]
        message.checksum = wire.chunk_checksum(reader.skeleton, message, message.keys, message.values)
        with pytest.raises(SkeletonError, match="not finite"):
            reader.read_chunk(message)

    def test_whatever_the_other_bytes_are_the_numbers_are_finite(
        self, reader: SkeletonReader, message: skeleton_pb2.LayerChunk
    ) -> None:
        edges, scales = 12 * 2 * 16 * 2, 3 * 2 * 16 * 2
        largest = tensor_bytes.to_bytes(torch.full((3 * 2 * 16,), torch.finfo(torch.bfloat16).max).bfloat16())
        rest = len(message.keys) - edges - scales
        message.keys = message.keys[:edges] + largest + b"\x80" * rest
        message.checksum = wire.chunk_checksum(reader.skeleton, message, message.keys, message.values)
        assert reader.read_chunk(message).keys.isfinite().all()

    @pytest.mark.parametrize("asked", ["raw", "int8", "int4"])
    @pytest.mark.parametrize("sent", ["raw", "int8", "int4"])
    def test_only_the_codec_asked_for_is_taken(self, asked: str, sent: str, spec: ModelSpec) -> None:
        reader = SkeletonReader(of(spec, 1500, Selection(codec=asked)), [self.KEPT] * 6)
        header = wire.header(of(spec, 1500, Selection(codec=sent)))
        if asked == sent:
            reader.read_header(header)
            return
        with pytest.raises(SkeletonError, match="header does not fit"):
            reader.read_header(header)

    @pytest.mark.parametrize("codec_name", ["raw", "int8", "int4"])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ""])
    def test_a_skeleton_is_bfloat16_where_it_is_not_quantised(
        self, codec_name: str, dtype: str, spec: ModelSpec
    ) -> None:
        selection = Selection(codec=codec_name)
        header = wire.header(of(spec, 1500, selection))
        header.dtype = dtype
        with pytest.raises(SkeletonError, match="header does not fit"):
            SkeletonReader(of(spec, 1500, selection), [self.KEPT] * 6).read_header(header)
