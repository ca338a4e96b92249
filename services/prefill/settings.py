"""Settings of a prefill worker."""

from pathlib import Path

from pydantic import Field, field_validator

from common.settings import WorkerSettings
from services.prefill.faults import Faults


class PrefillSettings(WorkerSettings):
    """Read from `STRUCTKV_*`; how a prompt is reduced is each request's affair."""

    max_queued_tokens: int = Field(1_000_000, ge=1, description="prompt tokens taken in at once; more are refused")
    grace_seconds: float = Field(30.0, ge=0, description="time for running prompts to end after SIGTERM")
    calibration: Path | None = Field(
        None, description="file written by `structkv calibrate`; unset: the cache folder's one for the model, if any"
    )
    faults: str = Field(
        "", description="for tests: damage chunks by chance, such as drop=0.01,delay=0.1,truncate=0.01,corrupt=0.01"
    )

    @field_validator("faults")
    @classmethod
    def _check_faults(cls, text: str) -> str:
        if text:
            Faults.parse(text)
        return text
