"""Settings that every process of the system has.

Read from `STRUCTKV_*` variables and flags, checked once at start: a bad value stops the process and is named.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_MODEL = "smollm2-135m-instruct"

Port = Annotated[int, Field(ge=0, le=65535)]
Addresses = Annotated[tuple[str, ...], NoDecode]
"""`host:port` entries, separated by commas in a variable or flag."""


class ServiceSettings(BaseSettings):
    """What the gateway and the workers have in common."""

    model_config = SettingsConfigDict(env_prefix="STRUCTKV_", extra="forbid", frozen=True)

    model: str = Field(DEFAULT_MODEL, description="hub id, folder, or GGUF file of the model")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(0, description="port to listen on; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class WorkerSettings(ServiceSettings):
    """What prefill and decode workers have in common."""

    device: str = Field("auto", description="torch device, such as cpu or cuda:0; auto takes a GPU if there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="weights and KV cache; auto is bfloat16 on a GPU, and on a CPU float32, or bfloat16 where the "
        "checkpoint has no more and it is quicker",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads for torch; its own choice if unset")
