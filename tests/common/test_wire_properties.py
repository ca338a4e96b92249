"""Whatever arrives: it is what was sent, or a SkeletonError."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import SkeletonError
from common.model.decoder import DecoderModel, ModelSpec
from common.pb import skeleton_pb2
from common.skeleton import wire
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import SkeletonReader
from common.transport import stored

PROMPT_TOKENS = 400
TOLERANCE = {"raw": 0.02, "int8": 0.05, "int4": 0.8}

# One example takes milliseconds and the model's spec does not change from one to the next.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def spec(request: pytest.FixtureRequest, tiny: Callable[[str], DecoderModel]) -> ModelSpec:
    return tiny(request.param).spec


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    return Selection(
        method=draw(st.sampled_from(["structkv", "snapkv", "full"])),
        kv_retention=draw(st.floats(0.05, 1.0)),
        window_tokens=draw(st.integers(1, 40)),
        sink_tokens=draw(st.integers(0, 8)),
        codec=draw(st.sampled_from(CODECS)),
    )


def sent(skeleton: SkeletonSpec, seed: int) -> tuple[list[torch.Tensor], list[skeleton_pb2.LayerChunk]]:
    """Return the keys of each layer, and the messages that carry them."""
    generator = torch.Generator().manual_seed(seed)
    spec, keys, messages = skeleton.model, [], []
    for layer, tokens in enumerate(skeleton.max_kept_tokens):
        shape = (tokens, spec.num_kv_heads, spec.head_dim)
        keys.append(torch.randn(shape, generator=generator))
        positions = torch.arange(PROMPT_TOKENS - tokens, PROMPT_TOKENS) if spec.windows[layer] else None
        messages += wire.layer_chunks(skeleton, layer, keys[-1], torch.randn(shape, generator=generator), positions)
    return keys, messages


def opened(skeleton: SkeletonSpec) -> SkeletonReader:
    reader = SkeletonReader(skeleton, skeleton.max_kept_tokens)
    reader.read_header(wire.header(skeleton))
    return reader


@relaxed
@given(selection=selections(), chunk_bytes=st.integers(200, 1 << 16), seed=st.integers(0, 1000))
def test_a_skeleton_arrives_whatever_it_is_and_however_it_is_cut(
    selection: Selection, chunk_bytes: int, seed: int, spec: ModelSpec
) -> None:
    skeleton = SkeletonSpec.of(spec, range(PROMPT_TOKENS), selection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "CHUNK_BYTES", chunk_bytes)
        keys, messages = sent(skeleton, seed)
    reader = opened(skeleton)
    parts: dict[int, list[torch.Tensor]] = {}
    for message in messages:
        chunk = reader.read_chunk(skeleton_pb2.LayerChunk.FromString(message.SerializeToString()))
        parts.setdefault(chunk.layer, []).append(chunk.keys)
    for layer, original in enumerate(keys):
        torch.testing.assert_close(
            torch.cat(parts[layer]).float(), original, rtol=0, atol=TOLERANCE[skeleton.codec.name]
        )
    hidden = torch.randn(spec.hidden_size)
    assert torch.equal(reader.read_result(wire.prompt_end(skeleton, hidden, 3)), hidden)


@relaxed
@given(selection=selections(), data=st.data())
def test_bytes_that_were_changed_are_refused(selection: Selection, data: st.DataObject, spec: ModelSpec) -> None:
    skeleton = SkeletonSpec.of(spec, range(PROMPT_TOKENS), selection)
    _, messages = sent(skeleton, 1)
    raw = bytearray(messages[0].SerializeToString())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, 3))
    with suppress(SkeletonError):
        message = stored.parse(skeleton_pb2.LayerChunk, bytes(raw[: len(raw) - cut]))
        if message != messages[0]:  # two changes may cancel out
            chunk = opened(skeleton).read_chunk(message)
            pytest.fail(f"{chunk.layer} was taken")


@relaxed
@given(junk=st.binary(max_size=400))
def test_junk_is_a_skeleton_error_or_nothing(junk: bytes, spec: ModelSpec) -> None:
    skeleton = SkeletonSpec.of(spec, range(PROMPT_TOKENS), Selection())
    reader = SkeletonReader(skeleton, skeleton.max_kept_tokens)
    with suppress(SkeletonError):
        reader.read_header(stored.parse(skeleton_pb2.SkeletonHeader, junk))
    with suppress(SkeletonError):
        opened(skeleton).read_chunk(stored.parse(skeleton_pb2.LayerChunk, junk))
    with suppress(SkeletonError):
        opened(skeleton).read_result(stored.parse(skeleton_pb2.PrefillResult, junk))
    with suppress(SkeletonError):
        complete = stored.parse(skeleton_pb2.StoredSkeleton, junk)
        stored.check_manifest(complete, skeleton, skeleton.max_kept_tokens)
        pytest.fail("junk is no skeleton")


@relaxed
@given(selection=selections(), other=selections(), shift=st.integers(0, 2))
def test_a_chunk_of_another_skeleton_is_refused(
    selection: Selection, other: Selection, shift: int, spec: ModelSpec
) -> None:
    mine = SkeletonSpec.of(spec, range(PROMPT_TOKENS), selection)
    foreign = SkeletonSpec.of(spec, range(shift, PROMPT_TOKENS + shift), other)
    if mine.digest == foreign.digest:
        return
    _, messages = sent(foreign, 2)
    with pytest.raises(SkeletonError):
        opened(mine).read_chunk(messages[0])
    with pytest.raises(SkeletonError):
        SkeletonReader(mine, mine.max_kept_tokens).read_header(wire.header(foreign))
