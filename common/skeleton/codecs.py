"""How keys and values are laid out as bytes: as they are, or quantised to 8 or 4 bits.

A chunk's keys are, one after the other: the unquantised tokens in their order, then scales, zeros and codes of the
others; so are its values. Keys are quantised per channel in groups of tokens, since a channel's keys are alike and
channels are not; values per token and KV head. A chunk's groups are its own, so it can be read alone.
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
        if self.name == "raw":
            return to_bytes(tensor.to(self.dtype))
        fields = self._fields(kind, split)
        buffer = torch.empty(sum(field.num_bytes for field in fields), dtype=torch.uint8, device=tensor.device)
        edges, scales, zeros, codes = _views(buffer, fields)
        inner = slice(split.first, split.first + split.quantised)
        edges[: split.first] = tensor[: inner.start]
        edges[split.first :] = tensor[inner.stop :]
        if split.quantised:
            levels = quantise.LEVELS[self.name]
            numbers, axis = _grouped(tensor[inner], kind)
            scale, zero = quantise.parameters(numbers, axis, levels)
            scales.copy_(scale)
            zeros.copy_(zero)
            quantise.quantise_(numbers, scale, zero, levels)
            numbers = numbers.flatten(0, 1)[: split.quantised]
            codes.copy_(quantise.pack(numbers.to(torch.uint8)) if self.name == "int4" else numbers)
        buffer = buffer.cpu()
        self._check(kind, _views(buffer, fields))
        return to_bytes(buffer)

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
        self._check(kind, _views(buffer, fields))
        edges, scales, zeros, codes = _views(buffer.to(device=device), fields)
        chosen = dtype or torch.float32
        decoded = torch.empty((split.tokens, *edges.shape[1:]), dtype=chosen, device=codes.device)
        inner = slice(split.first, split.first + split.quantised)
        decoded[: inner.start] = edges[: split.first]
        decoded[inner.stop :] = edges[split.first :]
        if split.quantised:
            numbers, _ = _grouped(quantise.unpack(codes) if self.name == "int4" else codes, kind)
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

    def _check(self, kind: Kind, views: list[Tensor]) -> None:
        """Raise SkeletonError for numbers that are not finite; a group that has one has no finite scale."""
        edges, scales, _, _ = views
        if not quantise.are_scales(scales) or not bool(torch.isfinite(edges).all()):
            raise SkeletonError(f"{kind} that are not finite cannot cross as {self.name}")


def _views(buffer: Tensor, fields: tuple[_Field, ...]) -> list[Tensor]:
    """Return a payload's parts as tensors over the same memory."""
    parts = buffer.split([field.num_bytes for field in fields])
    return [part.view(field.dtype).view(field.shape) for part, field in zip(parts, fields, strict=True)]


def _grouped(tokens: Tensor, kind: Kind) -> tuple[Tensor, int]:
    """Copy tokens, [tokens, G, d], as float32 into [groups, in a group, G, d]; return the axis that a group spans too.

    The last group is filled up with its last token, which changes neither its least nor its largest number.
    """
    num_tokens = tokens.shape[0]
    in_group, axis = (GROUP_TOKENS, 1) if kind == "keys" else (1, 3)
    groups = -(-num_tokens // in_group)
    copy = torch.empty((groups * in_group, *tokens.shape[1:]), dtype=torch.float32, device=tokens.device)
    copy[:num_tokens] = tokens
    copy[num_tokens:] = copy[num_tokens - 1]
    return copy.unflatten(0, (groups, in_group)), axis
