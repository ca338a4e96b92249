"""What a skeleton is of. Prefill and decode derive it from the same request, so neither has to believe the other."""

import hashlib
import json
import struct
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from common.model.decoder import ModelSpec
from common.skeleton.codecs import Codec
from common.skeleton.selection import Selection

VERSION = 3
"""Of the messages and of what lies in them; skeletons of different versions are strangers to each other."""


@dataclass(frozen=True, slots=True)
class SkeletonSpec:
    """One prompt under one selection, by one model.

    Attributes:
        model: whose keys and values they are.
        prompt_tokens: N.
        selection: how they were chosen.
        codec: the form in which they cross.
        digest: BLAKE2b-256 of all that the skeleton is a function of; it names the skeleton in a store, and every
            checksum is seeded by it, so that no part of another skeleton can take a part's place.
    """

    model: ModelSpec
    prompt_tokens: int
    selection: Selection
    codec: Codec
    digest: bytes

    @classmethod
    def of(cls, model: ModelSpec, token_ids: Sequence[int], selection: Selection) -> Self:
        """Return the spec of a request's skeleton. Raises InvalidRequestError for a codec the model cannot have."""
        codec = Codec.of(model, len(token_ids), selection)
        return cls(model, len(token_ids), selection, codec, _digest(model.fingerprint, token_ids, selection))

    @property
    def seed(self) -> int:
        """The checksums' seed: the digest's first eight bytes."""
        return int.from_bytes(self.digest[:8], "little")

    @property
    def max_kept_tokens(self) -> list[int]:
        """The most that each layer can hold."""
        return self.selection.max_kept_tokens(self.prompt_tokens, self.model.windows)

    @property
    def is_whole(self) -> bool:
        """Whether the prompt is left whole."""
        return self.selection.keeps_everything(self.prompt_tokens)


def _digest(fingerprint: str, token_ids: Sequence[int], selection: Selection) -> bytes:
    terms = json.dumps([VERSION, fingerprint, asdict(selection)], sort_keys=True).encode()
    tokens = array("I", token_ids)
    assert tokens.itemsize == 4
    return hashlib.blake2b(struct.pack("<Q", len(terms)) + terms + tokens.tobytes(), digest_size=32).digest()
