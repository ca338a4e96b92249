"""The `structkv` object of a request: how its prompt is reduced."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, WithJsonSchema

from common.skeleton.selection import (
    CODECS,
    GRANULARITIES,
    METHODS,
    PIVOTS,
    RANKINGS,
    SALIENCIES,
    VARIANTS,
    Selection,
)
from services.gateway.requests.strict_body import StrictBody


def _one_of(values: Sequence[str]) -> WithJsonSchema:
    # The selection itself checks them; this is for the published schema.
    return WithJsonSchema({"enum": [*values, None]})


_Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
_Share = Annotated[
    float | None, WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]})
]


class StructKVOptions(StrictBody):
    """How this prompt is to be reduced; what is absent comes from the gateway's settings."""

    model_config = ConfigDict(extra="forbid")

    method: Annotated[str | None, _one_of(METHODS)] = None
    variant: Annotated[str | None, _one_of(tuple(VARIANTS))] = None
    kv_retention: _Share = None
    kv_tokens: _Uint32 | None = None
    struct_retention: _Share = None
    window_tokens: _Uint32 | None = None
    sink_tokens: _Uint32 | None = None
    floor_tokens: _Uint32 | None = None
    saliency: Annotated[str | None, _one_of(SALIENCIES)] = None
    ranked_by: Annotated[str | None, _one_of(RANKINGS)] = None
    granularity: Annotated[str | None, _one_of(GRANULARITIES)] = None
    pool_tokens: _Uint32 | None = None
    block_tokens: _Uint32 | None = None
    decay: _Share = None
    pivot: Annotated[str | None, _one_of(PIVOTS)] = None
    pivot_layer: _Uint32 | None = None
    codec: Annotated[str | None, _one_of(CODECS)] = None
    return_stats: bool = False

    def choose(self, defaults: Selection) -> Selection:
        """Return the request's selection; raise InvalidRequestError for values out of range."""
        return Selection.of(self.model_dump(exclude={"return_stats"}, exclude_none=True), defaults)
