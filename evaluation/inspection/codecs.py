"""Bytes of a prompt's skeleton in every codec: each layer is encoded as prefill sends it, and counted."""

from dataclasses import replace
from typing import Self

from common.errors import InvalidRequestError
from common.model.decoder import ModelSpec
from common.skeleton import wire
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.tensor_bytes import dtype_name
from services.prefill.outputs import KeptLayer


class ByteCounter:
    """Counts the keys and values of one prompt's layers, codec by codec.

    Attributes:
        num_bytes: so far, by codec. A prompt that is left whole crosses exactly, in the model's own dtype only.
        chosen: the codec in which the skeleton would be sent.
    """

    def __init__(self, skeletons: dict[str, SkeletonSpec], chosen: str) -> None:
        self._skeletons = skeletons
        self.chosen = chosen
        self.num_bytes = dict.fromkeys(skeletons, 0)

    @classmethod
    def of(cls, model: ModelSpec, token_ids: list[int], selection: Selection) -> Self:
        """Return a counter; codecs that the model cannot have are left out, unless it is the one asked for."""
        chosen = SkeletonSpec.of(model, token_ids, selection)
        if chosen.is_whole:
            name = f"exact {dtype_name(model.dtype)}"
            return cls({name: chosen}, name)
        skeletons = {}
        for codec in CODECS:
            try:
                skeletons[codec] = SkeletonSpec.of(model, token_ids, replace(selection, codec=codec))
            except InvalidRequestError:  # the comparison goes without it
                continue
        return cls(skeletons, selection.codec)

    def add(self, layer: KeptLayer) -> None:
        """Count one layer."""
        for codec, skeleton in self._skeletons.items():
            for chunk in wire.layer_chunks(skeleton, layer.layer, layer.keys, layer.values, layer.positions):
                self.num_bytes[codec] += len(chunk.keys) + len(chunk.values)
