"""Settings that every process of the system has.

Read from `STRUCTKV_*` variables and flags, checked once at start: a bad value stops the process and is named.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
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
    transport: Literal["inline", "redis"] = Field(
        "inline", description="how skeletons cross: in the call itself, or through a store that all workers reach"
    )
    redis_url: SecretStr | None = Field(
        None,
        validation_alias="redis_url",
        description="redis:// or rediss:// (TLS) URL of the store, Redis 7 or Valkey; as a variable it is REDIS_URL",
    )
    store_ttl_seconds: float = Field(600.0, gt=0, description="how long a skeleton stays in the store")
    store_memory_mib: int = Field(1024, ge=1, description="most that all skeletons in the store have together")
    metrics_port: Port | None = Field(None, description="port of Prometheus metrics at /metrics; none if unset")

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if self.transport == "redis" and self.redis_url is None:
            raise ValueError("transport redis needs redis_url (--redis-url, REDIS_URL)")
        return self
