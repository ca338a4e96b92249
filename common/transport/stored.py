"""A skeleton in the store: its keys' names, its layers as bytes, and what is checked of them when they come back."""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from common.errors import SkeletonError
from common.pb import skeleton_pb2
from common.skeleton.codecs import Split
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import CHUNK_BYTES

PREFIX = "structkv:"
MANIFEST_BYTES = 1 << 20
"""Upper bound of a stored skeleton's own message, without its layers."""
LAYER_BYTES = 128 * 1024 * 1024
"""A layer above this crosses inline: a server takes a value in one piece, and nobody else gets a turn meanwhile."""
_CHUNK_OVERHEAD_BYTES = 128
"""Upper bound of a chunk's numbers and of the lengths around its parts."""
_POSITION_BYTES = 5

MessageT = TypeVar("MessageT", bound=Message)


def manifest_key(skeleton: SkeletonSpec) -> str:
    """Return where the skeleton is found."""
    return f"{PREFIX}skeleton:{skeleton.digest.hex()}"


def layer_key(skeleton: SkeletonSpec, writer: str, layer: int) -> str:
    """Return where a writer puts a layer. Two writers of one skeleton do not mix: their hardware may differ."""
    return f"{writer_prefix(skeleton, writer)}{layer}"


def writer_prefix(skeleton: SkeletonSpec, writer: str) -> str:
    """Return what the keys of all layers of a writer begin with."""
    return f"{_layer_prefix(skeleton)}{writer}:"


def _layer_prefix(skeleton: SkeletonSpec) -> str:
    return f"{PREFIX}layer:{skeleton.digest.hex()}:"


def layer_bound_bytes(skeleton: SkeletonSpec, max_tokens: int) -> int:
    """Return the most bytes that a layer of so many tokens has in the store."""
    codec = skeleton.codec
    payload = codec.num_bytes(codec.split(max_tokens, 0, max_tokens))
    # A chunk may begin within a group of tokens, which then has its scales and zeros twice: no more than two tokens'.
    per_chunk = 4 * codec.num_bytes(Split(2, 0, 0)) + _CHUNK_OVERHEAD_BYTES
    return payload + per_chunk * (2 * payload // CHUNK_BYTES + 1) + max_tokens * _POSITION_BYTES


def check_reference(
    skeleton: SkeletonSpec, reference: skeleton_pb2.LayerReference, layer: int, max_tokens: int
) -> None:
    """Raise SkeletonError unless a reference is to this layer of this skeleton, and no larger than it can be."""
    bound = min(LAYER_BYTES, layer_bound_bytes(skeleton, max_tokens))
    if reference.layer != layer or not reference.key.startswith(_layer_prefix(skeleton)):
        raise SkeletonError(f"a reference to {reference.key!r} stands where layer {layer} is expected")
    if not 0 < reference.num_bytes <= bound:
        raise SkeletonError(f"layer {layer} is said to have {reference.num_bytes} bytes, at most {bound} are possible")


def check_manifest(stored: skeleton_pb2.StoredSkeleton, skeleton: SkeletonSpec, bounds: Sequence[int]) -> None:
    """Raise SkeletonError unless it refers to every layer, in order."""
    if len(stored.layers) != len(bounds):
        raise SkeletonError(f"a stored skeleton has {len(stored.layers)} layers, {len(bounds)} are expected")
    for layer, (reference, max_tokens) in enumerate(zip(stored.layers, bounds, strict=True)):
        check_reference(skeleton, reference, layer, max_tokens)


def parse(kind: type[MessageT], data: bytes) -> MessageT:
    """Read a message; raise SkeletonError for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise SkeletonError(f"stored bytes are no {kind.__name__}: {error}") from error
