"""A skeleton's messages: layers cut into checksummed chunks, and the reader that trusts none of them.

Keys and values cross in the order in which they are stored, [tokens, G, d], so a chunk is written where it belongs
without rearranging; `codecs` has their bytes. Whatever a message claims is checked against what the receiver expects
before it is used.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from common.errors import SkeletonError
from common.pb import skeleton_pb2
from common.skeleton.chunks import Span, chunk_spans
from common.skeleton.spec import VERSION, SkeletonSpec
from common.skeleton.tensor_bytes import dtype_from_name, dtype_name, from_bytes, to_bytes, to_host

CHUNK_BYTES = 1 << 20
"""Keys and values in one message: large enough to be efficient, far from gRPC's limits."""


def header(skeleton: SkeletonSpec) -> skeleton_pb2.SkeletonHeader:
    """Return the message that opens a skeleton."""
    model, codec = skeleton.model, skeleton.codec
    return skeleton_pb2.SkeletonHeader(
        version=VERSION,
        model_fingerprint=model.fingerprint,
        prompt_tokens=skeleton.prompt_tokens,
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=dtype_name(codec.dtype),
        codec=codec.name,
        digest=skeleton.digest,
    )


class EncodedLayer:
    """One layer's kept keys and values, encoded whole, and their messages.

    On a CUDA device encoding and copying to the host are only queued, on its current stream: the messages can be made
    once the layer `has_arrived`, or they wait for it.
    """

    def __init__(
        self, skeleton: SkeletonSpec, layer: int, keys: Tensor, values: Tensor, positions: Tensor | None
    ) -> None:
        """Take the kept keys and values, each [kept, G, d], and their positions [kept]; all on one device."""
        self._skeleton = skeleton
        self._layer = layer
        self._whole = skeleton.codec.split(keys.shape[0], 0, keys.shape[0])
        self._keys = to_host(skeleton.codec.payload("keys", keys, self._whole))
        self._values = to_host(skeleton.codec.payload("values", values, self._whole))
        self._positions = None if positions is None else to_host(positions)
        self._copied = torch.cuda.current_stream(keys.device).record_event() if keys.is_cuda else None

    @property
    def has_arrived(self) -> bool:
        """Whether all of it is on the host."""
        return self._copied is None or self._copied.query()

    @property
    def num_bytes(self) -> int:
        """The size of its keys and values in all messages together."""
        return self._keys.nbytes + self._values.nbytes

    def spans(self) -> Sequence[Span]:
        """Wait for the layer to arrive; return its chunks' places in it, in order.

        Raises SkeletonError for numbers that the codec cannot express.
        """
        if self._copied is not None:
            self._copied.synchronize()
        self._skeleton.codec.check("keys", self._keys, self._whole)
        self._skeleton.codec.check("values", self._values, self._whole)
        return chunk_spans(self._skeleton.codec, self._whole.tokens, CHUNK_BYTES)

    def write(self, chunk: skeleton_pb2.LayerChunk, start: int, end: int) -> None:
        """Fill an empty message, where it is to stay, with one of the spans' chunks; to be moved it would be copied."""
        codec, num_tokens = self._skeleton.codec, self._whole.tokens
        keys = codec.cut("keys", self._keys.numpy().data, num_tokens, start, end)
        values = codec.cut("values", self._values.numpy().data, num_tokens, start, end)
        chunk.layer, chunk.layer_tokens = self._layer, num_tokens
        chunk.token_start, chunk.num_tokens = start, end - start
        chunk.keys, chunk.values = keys, values
        if self._positions is not None:
            chunk.positions.extend(self._positions[start:end].tolist())
        chunk.checksum = chunk_checksum(self._skeleton, chunk, keys, values)


def layer_chunks(
    skeleton: SkeletonSpec, layer: int, keys: Tensor, values: Tensor, positions: Tensor | None
) -> Iterator[skeleton_pb2.LayerChunk]:
    """Cut one layer's kept keys and values, each [kept, G, d], and its positions [kept] into messages.

    Raises SkeletonError for numbers that the codec cannot express.
    """
    encoded = EncodedLayer(skeleton, layer, keys, values, positions)
    for span in encoded.spans():
        chunk = skeleton_pb2.LayerChunk()
        encoded.write(chunk, *span)
        yield chunk


def prompt_end(skeleton: SkeletonSpec, hidden_state: Tensor, pivot_layer: int | None) -> skeleton_pb2.PrefillResult:
    """Return the message that closes a skeleton, its times still unset."""
    data = to_bytes(hidden_state.float())
    result = skeleton_pb2.PrefillResult(hidden_state=data, pivot_layer=pivot_layer)
    result.checksum = _result_checksum(skeleton, result)
    return result


class Chunk(NamedTuple):
    """A verified part of a layer: keys and values [tokens, G, d] from `token_start` on."""

    layer: int
    token_start: int
    keys: Tensor
    values: Tensor
    positions: list[int] | None


class SkeletonReader:
    """Checks a skeleton's messages in their order; each method raises SkeletonError for what does not fit."""

    def __init__(
        self,
        skeleton: SkeletonSpec,
        max_kept_tokens: Sequence[int],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Expect a skeleton with at most so many tokens in each layer.

        Its chunks come on `device` and as `dtype`, for which `Codec.decode` has the defaults.
        """
        self.skeleton = skeleton
        self._model = skeleton.model
        self._max_kept_tokens = max_kept_tokens
        self._device, self._dtype = device, dtype
        self._opened = False
        self._next_token = 0
        self.kept_tokens: list[int] = []
        self.num_bytes = 0

    def read_header(self, message: skeleton_pb2.SkeletonHeader) -> None:
        """Take the opening message."""
        if self.skeleton.is_whole:  # in the sender's own precision, which need not be ours
            codec = replace(self.skeleton.codec, dtype=dtype_from_name(message.dtype))
            self.skeleton = replace(self.skeleton, codec=codec)
        expected = header(self.skeleton)
        if message != expected:
            names = [
                f.name for f in expected.DESCRIPTOR.fields if getattr(message, f.name) != getattr(expected, f.name)
            ]
            raise SkeletonError(f"skeleton header does not fit: {', '.join(names) or 'unknown fields'}")
        self._opened = True

    def read_chunk(self, message: skeleton_pb2.LayerChunk) -> Chunk:
        """Take the next part of the current layer, or the first of the next one."""
        if not self._opened:
            raise SkeletonError("a chunk came before the header")
        self._check_place(message)
        key_bytes, value_bytes = message.keys, message.values  # every access copies them
        if message.checksum != chunk_checksum(self.skeleton, message, key_bytes, value_bytes):
            raise SkeletonError(f"layer {message.layer}: checksum differs at token {message.token_start}")
        start, end = message.token_start, message.token_start + message.num_tokens
        codec = self.skeleton.codec
        split = codec.split(message.layer_tokens, start, end)
        keys = codec.decode("keys", key_bytes, split, device=self._device, dtype=self._dtype)
        values = codec.decode("values", value_bytes, split, device=self._device, dtype=self._dtype)
        self.num_bytes += len(key_bytes) + len(value_bytes)
        self._advance(message)
        positions = list(message.positions) if self._model.windows[message.layer] is not None else None
        return Chunk(message.layer, start, keys, values, positions)

    def read_result(self, message: skeleton_pb2.PrefillResult) -> Tensor:
        """Take the closing message; return the last token's hidden state, [hidden_size]."""
        if not self._opened or self._next_token or len(self.kept_tokens) != self._model.num_layers:
            raise SkeletonError(f"skeleton ended in layer {len(self.kept_tokens)} of {self._model.num_layers}")
        if message.checksum != _result_checksum(self.skeleton, message):
            raise SkeletonError("checksum of the result differs")
        return from_bytes(message.hidden_state, torch.float32, (self._model.hidden_size,))

    def _check_place(self, message: skeleton_pb2.LayerChunk) -> None:
        layer = len(self.kept_tokens)
        if message.layer != layer or layer >= self._model.num_layers or message.token_start != self._next_token:
            raise SkeletonError(
                f"expected layer {layer} token {self._next_token}, "
                f"got layer {message.layer} token {message.token_start}"
            )
        end = message.token_start + message.num_tokens
        if message.num_tokens == 0 or not end <= message.layer_tokens <= self._max_kept_tokens[layer]:
            raise SkeletonError(
                f"layer {layer}: tokens {message.token_start} to {end} of {message.layer_tokens}, "
                f"at most {self._max_kept_tokens[layer]} are expected"
            )
        self._check_positions(message)

    def _check_positions(self, message: skeleton_pb2.LayerChunk) -> None:
        positions = message.positions
        wanted = message.num_tokens if self._model.windows[message.layer] is not None else 0
        if len(positions) != wanted or any(p >= self.skeleton.prompt_tokens for p in positions):
            raise SkeletonError(f"layer {message.layer}: {len(positions)} positions, {wanted} in the prompt expected")
        if any(later <= earlier for earlier, later in pairwise(positions)):
            raise SkeletonError(f"layer {message.layer}: positions do not ascend")

    def _advance(self, message: skeleton_pb2.LayerChunk) -> None:
        self._next_token += message.num_tokens
        if self._next_token == message.layer_tokens:
            self.kept_tokens.append(message.layer_tokens)
            self._next_token = 0


def chunk_checksum(skeleton: SkeletonSpec, chunk: skeleton_pb2.LayerChunk, keys: bytes, values: bytes) -> int:
    """Return the checksum that a chunk of this skeleton must bear; `keys` and `values` are its own."""
    place = struct.pack("<4I", chunk.layer, chunk.layer_tokens, chunk.token_start, chunk.num_tokens)
    digest = xxhash.xxh3_64(place, seed=skeleton.seed)
    digest.update(keys)
    digest.update(values)
    digest.update(struct.pack(f"<{len(chunk.positions)}I", *chunk.positions))
    return digest.intdigest()


def _result_checksum(skeleton: SkeletonSpec, result: skeleton_pb2.PrefillResult) -> int:
    pivot_layer = result.pivot_layer if result.HasField("pivot_layer") else -1
    return xxhash.xxh3_64_intdigest(struct.pack("<i", pivot_layer) + result.hidden_state, seed=skeleton.seed)
