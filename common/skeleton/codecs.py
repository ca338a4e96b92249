"""How keys and values are laid out as bytes: as they are, or quantised to 8 or 4 bits.

A chunk's keys are, one after the other: the unquantised tokens in their order, then scales, zeros and codes of the
others; so are its values. Keys are quantised per channel in groups of tokens, since a channel's keys are alike and
channels are not; values per token and KV head. A chunk's groups are its own, so it can be read alone. The sender's
chunks end where groups do: a layer is quantised as if it were one chunk, and then cut.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from common.errors import InvalidRequestError, SkeletonError
from common.model.decoder import ModelSpec
from common.skeleton import quantise
from common.skeleton.selection import Selection
from common.skeleton.tensor_bytes import from_bytes, to_bytes

GROUP_TOKENS = 64
"""Tokens that share a key channel's scale and zero."""

_CPU_BLOCK_BYTES = 4 << 20
"""Of the float32 numbers that a CPU quantises at a time, so that they stay in its caches from one step to the next."""

_EDGE_SHARE = 12
"""At most one in so many of a layer's tokens is left unquantised: the sizes hold for short prompts too."""

Kind = Literal["keys", "values"]


class Split(NamedTuple):
    """A chunk's tokens: unquantised ones, then quantised ones, then unquantised ones again."""

    first: int
    quantised: int
    last: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(self)


class _Field(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Codec:
    """The form in which one prompt's keys and values cross; both sides derive it from the request.

    Attributes:
        name: one of `selection.CODECS`.
        dtype: of the tokens that are not quantised.
        num_kv_heads: G.
        head_dim: d.
        sinks: first tokens of a layer left unquantised, as far as `edges` allows.
        window: last tokens, likewise.
    """

    name: str
    dtype: torch.dtype
    num_kv_heads: int
    head_dim: int
    sinks: int
    window: int

    @classmethod
    def of(cls, spec: ModelSpec, prompt_tokens: int, selection: Selection) -> Self:
        """Return a prompt's codec; one that is kept whole crosses raw, in the model's own dtype.

        Raises InvalidRequestError for int4 where heads have an odd size.
        """
        whole = selection.keeps_everything(prompt_tokens)
        name = "raw" if whole else selection.codec
        if name == "int4" and spec.head_dim % 2:
            raise InvalidRequestError(
                f"codec int4 needs heads of an even size, this model's have {spec.head_dim}", param="structkv.codec"
            )
        return cls(
            name=name,
            dtype=spec.dtype if whole else torch.bfloat16,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            sinks=selection.sink_tokens,
            window=selection.window_tokens,
        )

    def edges(self, layer_tokens: int) -> tuple[int, int]:
        """Return how many of a layer's first and last kept tokens are left unquantised; the window gives way first."""
        if self.name == "raw":
            return layer_tokens, 0
        most = layer_tokens // _EDGE_SHARE
        first = min(self.sinks, most)
        return first, min(self.window, most - first)

    def split(self, layer_tokens: int, start: int, end: int) -> Split:
        """Return what the tokens from `start` to `end` of a layer are."""
        first, last = self.edges(layer_tokens)
        quantised_from = min(max(start, first), end)
        quantised_to = max(min(end, layer_tokens - last), quantised_from)
        return Split(quantised_from - start, quantised_to - quantised_from, end - quantised_to)

    def num_bytes(self, split: Split) -> int:
        """Return the size of such a chunk's keys and values together."""
        return sum(field.num_bytes for kind in ("keys", "values") for field in self._fields(kind, split))

    def encode(self, kind: Kind, tensor: Tensor, split: Split) -> bytes:
        """Return a chunk's keys or values, [tokens, G, d] on any device, as bytes.

        Raises SkeletonError for numbers that are not finite, unless they cross raw.
        """
        payload = self.payload(kind, tensor, split).cpu()
        self.check(kind, payload, split)
        return to_bytes(payload)

    def payload(self, kind: Kind, tensor: Tensor, split: Split) -> Tensor:
        """Return a chunk's keys or values, [tokens, G, d], as its bytes on the same device, [bytes] uint8.

        Nothing here waits for the device. What is not finite is for `check` to find.
        """
        if self.name == "raw":
            return tensor.to(self.dtype).contiguous().flatten().view(torch.uint8)
        fields = self._fields(kind, split)
        buffer = torch.empty(sum(field.num_bytes for field in fields), dtype=torch.uint8, device=tensor.device)
        edges, *quantised = _views(buffer, fields)
        inner = slice(split.first, split.first + split.quantised)
        edges[: split.first] = tensor[: inner.start]
        edges[split.first :] = tensor[inner.stop :]
        if split.quantised:
            self._quantise(kind, tensor[inner], *quantised)
        return buffer

    def check(self, kind: Kind, payload: Tensor, split: Split) -> None:
        """Raise SkeletonError if a payload has numbers that are not finite, unless it is raw.

        A group that has one has no finite scale.
        """
        if self.name == "raw":
            return
        edges, scales, _, _ = _views(payload, self._fields(kind, split))
        if not quantise.are_scales(scales) or not bool(torch.isfinite(edges).all()):
            raise SkeletonError(f"{kind} that are not finite cannot cross as {self.name}")

    def cut(self, kind: Kind, payload: memoryview, layer_tokens: int, start: int, end: int) -> bytes:
        """Return the chunk's bytes from `start` to `end`, one of `chunks.chunk_spans`, out of the whole layer's."""
        spans = (layer_tokens, 0, layer_tokens), (layer_tokens, 0, start), (layer_tokens, start, end)
        parts, offset = [], 0
        for whole, before, own in zip(*(self._fields(kind, self.split(*span)) for span in spans), strict=True):
            first = offset + before.num_bytes
            parts.append(payload[first : first + own.num_bytes])
            offset += whole.num_bytes
        return b"".join(parts)

    def decode(
        self,
        kind: Kind,
        data: bytes,
        split: Split,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return a chunk's keys or values, [tokens, G, d].

        They come on `device`, by default the CPU, where codes are turned into numbers; and as `dtype`, by default
        float32 if quantised, else as they crossed. Raises SkeletonError for bytes that are not such a chunk's.
        """
        if self.name == "raw":
            shape = (split.tokens, self.num_kv_heads, self.head_dim)
            return from_bytes(data, self.dtype, shape).to(device=device, dtype=dtype)
        fields = self._fields(kind, split)
        buffer = from_bytes(data, torch.uint8, (sum(field.num_bytes for field in fields),))
        self.check(kind, buffer, split)
        edges, scales, zeros, codes = _views(buffer.to(device=device), fields)
        chosen = dtype or torch.float32
        decoded = torch.empty((split.tokens, *edges.shape[1:]), dtype=chosen, device=codes.device)
        inner = slice(split.first, split.first + split.quantised)
        decoded[: inner.start] = edges[: split.first]
        decoded[inner.stop :] = edges[split.first :]
        if split.quantised:
            unpacked = quantise.unpack(codes) if self.name == "int4" else codes
            numbers, _ = _grouped(unpacked, kind, _room(unpacked))
            quantise.dequantise_(numbers, scales, zeros, torch.finfo(chosen).max)
            decoded[inner] = numbers.flatten(0, 1)[: split.quantised]
        return decoded

    def _fields(self, kind: Kind, split: Split) -> tuple[_Field, ...]:
        """Return what lies in a payload, in its order: unquantised tokens, scales, zeros, codes."""
        heads, size, tokens = self.num_kv_heads, self.head_dim, split.quantised
        edges = _Field(self.dtype, (split.first + split.last, heads, size))
        if self.name == "raw":
            return (edges,)
        groups = -(-tokens // GROUP_TOKENS)
        shape = (groups, 1, heads, size) if kind == "keys" else (tokens, 1, heads, 1)
        codes = _Field(torch.uint8, (tokens, heads, size // 2 if self.name == "int4" else size))
        return edges, _Field(quantise.SCALE_DTYPE, shape), _Field(quantise.ZERO_DTYPE, shape), codes

    def _quantise(self, kind: Kind, tensor: Tensor, scales: Tensor, zeros: Tensor, codes: Tensor) -> None:
        """Write the scales, zeros and codes of tokens, [tokens, G, d], where they belong; a CPU does so in blocks."""
        levels, in_group = quantise.LEVELS[self.name], GROUP_TOKENS if kind == "keys" else 1
        at_once = tensor.shape[0] if tensor.is_cuda else _CPU_BLOCK_BYTES // (4 * tensor[0].numel())
        room = _room(tensor[: max(1, at_once)])
        block = room.shape[0]
        rows = (scales.split(block // in_group), zeros.split(block // in_group), codes.split(block))
        for part, scale_rows, zero_rows, code_rows in zip(tensor.split(block), *rows, strict=True):
            numbers, axis = _grouped(part, kind, room)
            scale, zero = quantise.parameters(numbers, axis, levels)
            scale_rows.copy_(scale)
            zero_rows.copy_(zero)
            quantise.quantise_(numbers, scale, zero)
            # By way of int32: from float32 to uint8 a CPU goes number by number.
            whole = numbers.view(torch.int32).copy_(numbers).flatten(0, 1)[: part.shape[0]]
            code_rows.copy_(quantise.pack(whole.to(torch.uint8)) if self.name == "int4" else whole)


def _views(buffer: Tensor, fields: tuple[_Field, ...]) -> list[Tensor]:
    """Return a payload's parts as tensors over the same memory."""
    parts = buffer.split([field.num_bytes for field in fields])
    return [part.view(field.dtype).view(field.shape) for part, field in zip(parts, fields, strict=True)]


def _room(tokens: Tensor) -> Tensor:
    """Return memory for tokens, [tokens, G, d], as float32 numbers in whole groups of tokens."""
    num_tokens = -(-tokens.shape[0] // GROUP_TOKENS) * GROUP_TOKENS
    return torch.empty((num_tokens, *tokens.shape[1:]), dtype=torch.float32, device=tokens.device)


def _grouped(tokens: Tensor, kind: Kind, room: Tensor) -> tuple[Tensor, int]:
    """Copy tokens, [tokens, G, d], into float32 `room`, as [groups, in a group, G, d]; return a group's other axis too.

    The last group is filled up with its last token, which changes neither its least nor its largest number.
    """
    num_tokens = tokens.shape[0]
    in_group, axis = (GROUP_TOKENS, 1) if kind == "keys" else (1, 3)
    groups = -(-num_tokens // in_group)
    copy = room[: groups * in_group]
    copy[:num_tokens] = tokens
    copy[num_tokens:] = copy[num_tokens - 1]
    return copy.unflatten(0, (groups, in_group)), axis
