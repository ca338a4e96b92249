"""A skeleton's messages: layers cut into checksummed chunks, and the reader that trusts none of them.

Keys and values cross as they are stored, [tokens, G, d], so a chunk is written where it belongs without
rearranging. A prompt that is kept whole crosses exactly; a skeleton is an approximation already and crosses in
bfloat16. Whatever a message claims is checked against what the receiver expects before it is used.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from common.errors import SkeletonError
from common.model.decoder import ModelSpec
from common.pb import skeleton_pb2
from common.skeleton.selection import Selection

VERSION = 1
CHUNK_BYTES = 1 << 20
"""Keys and values in one message: large enough to be efficient, far from gRPC's limits."""


def wire_dtype(spec: ModelSpec, prompt_tokens: int, selection: Selection) -> torch.dtype:
    """Return the precision in which a prompt's keys and values cross."""
    return spec.dtype if selection.keeps_everything(prompt_tokens) else torch.bfloat16


def header(spec: ModelSpec, prompt_tokens: int, dtype: torch.dtype) -> skeleton_pb2.SkeletonHeader:
    """Return the message that opens a skeleton."""
    return skeleton_pb2.SkeletonHeader(
        version=VERSION,
        model_fingerprint=spec.fingerprint,
        prompt_tokens=prompt_tokens,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype_name(dtype),
    )


def layer_chunks(
    layer: int, keys: Tensor, values: Tensor, positions: Tensor | None, dtype: torch.dtype
) -> Iterator[skeleton_pb2.LayerChunk]:
    """Cut one layer's kept keys and values, each [kept, G, d], and its positions [kept] into messages."""
    num_tokens = keys.shape[0]
    row_bytes = 2 * keys[0].numel() * dtype.itemsize
    step = max(1, CHUNK_BYTES // row_bytes)
    keys, values = keys.to(dtype).cpu(), values.to(dtype).cpu()
    for start in range(0, num_tokens, step):
        end = min(start + step, num_tokens)
        chunk = skeleton_pb2.LayerChunk(
            layer=layer,
            layer_tokens=num_tokens,
            token_start=start,
            num_tokens=end - start,
            keys=to_bytes(keys[start:end]),
            values=to_bytes(values[start:end]),
            positions=positions[start:end].tolist() if positions is not None else (),
        )
        chunk.checksum = _checksum(chunk)
        yield chunk


def prompt_end(hidden_state: Tensor, pivot_layer: int | None) -> skeleton_pb2.PrefillResult:
    """Return the message that closes a skeleton, its times still unset."""
    data = to_bytes(hidden_state.float().cpu())
    return skeleton_pb2.PrefillResult(
        hidden_state=data, checksum=xxhash.xxh3_64_intdigest(data), pivot_layer=pivot_layer
    )


class Chunk(NamedTuple):
    """A verified part of a layer: keys and values [tokens, G, d] from `token_start` on."""

    layer: int
    token_start: int
    keys: Tensor
    values: Tensor
    positions: list[int] | None


class SkeletonReader:
    """Checks a skeleton's messages in their order; each method raises SkeletonError for what does not fit."""

    def __init__(self, spec: ModelSpec, prompt_tokens: int, max_kept_tokens: Sequence[int]) -> None:
        """Expect a skeleton of a prompt for a model, with at most so many tokens in each layer."""
        self._spec = spec
        self.prompt_tokens = prompt_tokens
        self._max_kept_tokens = max_kept_tokens
        self._dtype: torch.dtype | None = None
        self._next_token = 0
        self.kept_tokens: list[int] = []
        self.num_bytes = 0

    def read_header(self, message: skeleton_pb2.SkeletonHeader) -> None:
        """Take the opening message."""
        spec = self._spec
        dtype = dtype_from_name(message.dtype)  # any will do: the pool converts to its own
        expected = header(spec, self.prompt_tokens, dtype)
        if message != expected:
            raise SkeletonError(f"skeleton header does not fit: got {message!r}, expected {expected!r}")
        self._dtype = dtype

    def read_chunk(self, message: skeleton_pb2.LayerChunk) -> Chunk:
        """Take the next part of the current layer, or the first of the next one."""
        if self._dtype is None:
            raise SkeletonError("a chunk came before the header")
        self._check_place(message)
        if message.checksum != _checksum(message):
            raise SkeletonError(f"layer {message.layer}: checksum differs at token {message.token_start}")
        shape = (message.num_tokens, self._spec.num_kv_heads, self._spec.head_dim)
        keys = from_bytes(message.keys, self._dtype, shape)
        values = from_bytes(message.values, self._dtype, shape)
        self._advance(message)
        positions = list(message.positions) if self._spec.windows[message.layer] is not None else None
        return Chunk(message.layer, message.token_start, keys, values, positions)

    def read_result(self, message: skeleton_pb2.PrefillResult) -> Tensor:
        """Take the closing message; return the last token's hidden state, [hidden_size]."""
        if self._dtype is None or self._next_token or len(self.kept_tokens) != self._spec.num_layers:
            raise SkeletonError(f"skeleton ended in layer {len(self.kept_tokens)} of {self._spec.num_layers}")
        if message.checksum != xxhash.xxh3_64_intdigest(message.hidden_state):
            raise SkeletonError("checksum of the hidden state differs")
        return from_bytes(message.hidden_state, torch.float32, (self._spec.hidden_size,))

    def _check_place(self, message: skeleton_pb2.LayerChunk) -> None:
        layer = len(self.kept_tokens)
        if message.layer != layer or layer >= self._spec.num_layers or message.token_start != self._next_token:
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
        wanted = message.num_tokens if self._spec.windows[message.layer] is not None else 0
        if len(positions) != wanted or any(p >= self.prompt_tokens for p in positions):
            raise SkeletonError(f"layer {message.layer}: {len(positions)} positions, {wanted} in the prompt expected")
        if any(later <= earlier for earlier, later in pairwise(positions)):
            raise SkeletonError(f"layer {message.layer}: positions do not ascend")

    def _advance(self, message: skeleton_pb2.LayerChunk) -> None:
        self.num_bytes += len(message.keys) + len(message.values)
        self._next_token += message.num_tokens
        if self._next_token == message.layer_tokens:
            self.kept_tokens.append(message.layer_tokens)
            self._next_token = 0


def to_bytes(tensor: Tensor) -> bytes:
    """Return a CPU tensor's elements as they lie in memory."""
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return data


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor over a copy of `data`; raise SkeletonError if the length is not the shape's."""
    wanted = dtype.itemsize * torch.Size(shape).numel()
    if len(data) != wanted:
        raise SkeletonError(f"{len(data)} bytes for a {list(shape)} of {dtype_name(dtype)}, expected {wanted}")
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """Return the floating-point dtype of that name; raise SkeletonError for any other."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if dtype_name(dtype) == name:
            return dtype
    raise SkeletonError(f"unknown dtype {name!r}")


def _checksum(chunk: skeleton_pb2.LayerChunk) -> int:
    digest = xxhash.xxh3_64(struct.pack("<4I", chunk.layer, chunk.layer_tokens, chunk.token_start, chunk.num_tokens))
    digest.update(chunk.keys)
    digest.update(chunk.values)
    digest.update(struct.pack(f"<{len(chunk.positions)}I", *chunk.positions))
    return digest.intdigest()
