"""Settings of a prefill worker."""

from typing import Literal

from pydantic import Field

from common.settings import WorkerSettings
from services.prefill.structkv.config import StructKVConfig

_DEFAULTS = StructKVConfig()


class PrefillSettings(WorkerSettings):
    """Read from `STRUCTKV_*`; the selection's parameters are this worker's, the budgets each request's."""

    max_queued_tokens: int = Field(1_000_000, ge=1, description="prompt tokens taken in at once; more are refused")
    grace_seconds: float = Field(30.0, ge=0, description="time for running prompts to end after SIGTERM")
    decay: float = Field(_DEFAULTS.decay, gt=0, le=1, description="lambda of the centrality")
    pivot_layer: int | None = Field(_DEFAULTS.pivot_layer, ge=1, description="L* of the model; detected if unset")
    pivot_patience: int = Field(_DEFAULTS.pivot_patience, ge=1, description="layers until a detected pivot is believed")
    pool_tokens: int = Field(_DEFAULTS.pool_tokens, ge=1, description="width of the saliency's pooling; 1 is none")
    granularity: Literal["head", "layer"] = Field(_DEFAULTS.granularity, description="kept sets per KV head or layer")

    def structkv(self) -> StructKVConfig:
        """Return the method's parameters."""
        return StructKVConfig(
            decay=self.decay,
            pivot_layer=self.pivot_layer,
            pivot_patience=self.pivot_patience,
            pool_tokens=self.pool_tokens,
            granularity=self.granularity,
        )
