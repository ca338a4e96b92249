"""Settings that every process of the system has.

Read from `STRUCTKV_*` variables and flags, checked once at start: a bad value stops the process and is named.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from common.network import check_free, is_loopback
from common.tls import PemFile, Tls, check_authority, check_key_pair

DEFAULT_MODEL = "smollm2-135m-instruct"

Port = Annotated[int, Field(ge=0, le=65535)]
Addresses = Annotated[tuple[str, ...], NoDecode]
"""`host:port` entries, separated by commas in a variable or flag."""


def _check_redis_url(url: SecretStr | None) -> SecretStr | None:
    from redis.connection import parse_url  # noqa: PLC0415  the gateway has these settings too, and no need of it

    if url is not None:
        try:
            parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]
        except ValueError:  # whose words would repeat the password
            raise ValueError("must be redis://host:port, or rediss:// for TLS") from None
    return url


class EnvironmentSettings(BaseSettings):
    """How settings are read. Values are hidden in errors: one of them may be a key."""

    model_config = SettingsConfigDict(env_prefix="STRUCTKV_", extra="forbid", frozen=True, hide_input_in_errors=True)


class TlsSettings(EnvironmentSettings):
    """Mutual TLS between the services: all three files, or none for plain text."""

    tls_cert: PemFile | None = Field(
        default=None, description="PEM file of this service's certificate, for the other services"
    )
    tls_key: PemFile | None = Field(default=None, description="PEM file of its private key")
    tls_ca: PemFile | None = Field(
        default=None, description="PEM file of the authority that signed all services' certificates"
    )
    tls_peer_name: str = Field(
        default="", description="name in the workers' certificates; the host by which they are reached if unset"
    )

    @property
    def tls(self) -> Tls | None:
        """The files' contents; None for plain text."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return Tls(self.tls_cert.read_bytes(), self.tls_key.read_bytes(), self.tls_ca.read_bytes(), self.tls_peer_name)

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """What the service shows to others, each with what leads to its authority."""
        return () if self.tls is None else (self.tls.certificate,)

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        if None in files and files != (None, None, None):
            raise ValueError("tls_cert, tls_key and tls_ca go together: set all of them, or none")
        if self.tls_cert is not None and self.tls_key is not None and self.tls_ca is not None:
            check_key_pair("tls", self.tls_cert, self.tls_key)
            check_authority("tls_ca", self.tls_ca)
        return self


class ServiceSettings(TlsSettings):
    """What the gateway and the workers have in common."""

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
    redis_url: Annotated[SecretStr | None, AfterValidator(_check_redis_url)] = Field(
        None,
        validation_alias="redis_url",
        description="redis:// or rediss:// (TLS) URL of the store, Redis 7 or Valkey; as a variable it is REDIS_URL",
    )
    store_ttl_seconds: float = Field(600.0, ge=1, description="how long a skeleton stays in the store")
    store_memory_mib: int = Field(1024, ge=1, description="most that all skeletons in the store have together")
    metrics_port: Port | None = Field(None, description="port of Prometheus metrics at /metrics; none if unset")

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if self.transport == "redis" and self.redis_url is None:
            raise ValueError("transport redis needs redis_url (--redis-url, REDIS_URL)")
        return self

    allow_plaintext: bool = Field(
        False, description="listen beyond loopback without TLS: whoever reaches the port may use the worker"
    )
    max_rpcs: int = Field(4096, ge=1, description="calls at the same time, health checks included; more are refused")

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if is_loopback(self.host) or self.tls_cert is not None or self.allow_plaintext:
            return self
        raise ValueError(
            f"host {self.host} is reached by other machines, and a worker asks nobody who they are. Set tls_cert, "
            "tls_key and tls_ca (STRUCTKV_TLS_CERT and so on), or on a network that only the services reach "
            "allow_plaintext (STRUCTKV_ALLOW_PLAINTEXT=true)"
        )


def check_ports(settings: WorkerSettings) -> None:
    """Raise OSError, which says why, unless a worker can listen where it is to."""
    check_free(settings.host, settings.port)
    if settings.metrics_port is not None:
        check_free(settings.host, settings.metrics_port)
