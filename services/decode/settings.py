"""Settings of a decode worker."""

from pydantic import Field

from common.settings import WorkerSettings
from services.decode.backend import Backend


class DecodeSettings(WorkerSettings):
    """Read from `STRUCTKV_*`."""

    kv_memory_gib: float | None = Field(
        None,
        gt=0,
        description="KV memory; a quarter of the free RAM up to 4 GiB, or 85% of the free GPU memory, if unset",
    )
    attention_backend: Backend = Field(
        "auto",
        description="decode attention: sdpa, or paged (Triton kernels in CUDA graphs), which auto takes on a GPU",
    )
    max_running: int = Field(64, ge=1, description="sequences decoded together; a request for more answers is refused")
    max_waiting_tokens: int = Field(
        1_000_000, ge=1, description="prompt tokens of requests waiting for KV memory; more are refused"
    )
    stall_seconds: float = Field(
        10.0,
        ge=7,  # it speaks once a second, and may wait five for a store that hangs
        description="a prefill worker that says nothing for so long has stalled, and the next one is asked",
    )
    grace_seconds: float = Field(30.0, ge=0, description="time for running answers to end after SIGTERM")
