"""What the gateway can be told, by flag or `STRUCTKV_*` variable."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from common.model.source import served_name
from common.settings import Addresses, Port, ServiceSettings
from common.skeleton.selection import METHODS, Selection
from services.gateway.http.endpoint import EndpointSettings
from services.gateway.tools.formats import FormatName

_DEFAULTS = Selection()


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(",") if entry.strip())


def _check_address(entry: str) -> None:
    host, _, port = entry.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{entry!r}: an IPv6 address is written in brackets, as in [::1]:50051")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= 65535:
        raise ValueError(f"{entry!r} is not host:port")


def _check_addresses(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        _check_address(entry)
    if len(set(entries)) != len(entries):
        raise ValueError("an address is listed twice")
    return entries


WorkerAddresses = Annotated[Addresses, BeforeValidator(_split), Field(min_length=1), AfterValidator(_check_addresses)]


class GatewaySettings(ServiceSettings, EndpointSettings):
    """Where to listen, whom to ask, and what a request that says nothing gets."""

    port: Port = Field(8000, description="port to listen on; 0 takes a free one")
    decode_workers: WorkerAddresses = Field(
        description="host:port of decode workers, separated by commas; a host's every address is a worker"
    )
    prefill_workers: WorkerAddresses = Field(description="the same of prefill workers")
    discovery_interval_seconds: float = Field(5.0, gt=0, description="pause between two looks at the workers' names")
    served_model_name: str = Field("", description="name that clients use; derived from the model if unset")

    method: Literal[*METHODS] = Field(_DEFAULTS.method, description="how prompts are reduced")  # type: ignore[valid-type]
    kv_retention: float = Field(_DEFAULTS.kv_retention, gt=0, le=1, description="share of tokens kept per layer")
    kv_tokens: int = Field(_DEFAULTS.kv_tokens, ge=0, description="the same as a number of tokens; 0 is off")
    struct_retention: float = Field(
        _DEFAULTS.struct_retention, gt=0, le=1, description="share of tokens that deep layers see"
    )
    floor_tokens: int = Field(_DEFAULTS.floor_tokens, ge=0, description="prompts up to this length stay whole")

    tool_call_parser: FormatName = Field(
        "auto", description="form of the model's calls of tools; auto reads it from the chat template"
    )

    request_timeout_seconds: float = Field(
        600.0, gt=0, description="a request's time, queueing included; a client may ask for less"
    )
    worker_wait_seconds: float = Field(
        10.0, ge=0, description="how long a request waits for a worker to serve when none does; then it gets a 503"
    )
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1, description="larger request bodies are refused")
    intake_processes: int = Field(
        1, ge=1, description="long requests read at the same time, each in a process of low priority"
    )
    max_prompt_tokens: int = Field(
        0, ge=0, description="longer prompts are refused; 0 leaves it to the model's context"
    )
    max_reading_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="bytes of all bodies being read; beyond it the largest and oldest get 429",
    )
    most_urgent_priority: int = Field(
        0, description="the lowest `priority` that a request may have, unless its key's line says otherwise"
    )
    max_requests: int = Field(
        512,
        ge=1,
        description="requests answered at the same time, one client's being eight ninths at most; more get 429",
    )
    max_connections: int = Field(
        900, ge=1, description="open client connections; beyond it one whose request is not worked on is closed"
    )
    header_timeout_seconds: float = Field(
        10.0, gt=0, description="time for a request's headers; also for the rest of a body that is answered already"
    )
    body_timeout_seconds: float = Field(
        20.0,
        gt=0,
        description="time without a byte of a request's body, and for what is slower than 500 bytes/s",
    )
    send_timeout_seconds: float = Field(
        30.0, gt=0, description="a client that takes nothing of what it is sent for so long is disconnected"
    )
    keep_alive_seconds: int = Field(
        75, ge=1, description="a connection without a request is closed after this time; above that of a proxy in front"
    )
    stream_heartbeat_seconds: float = Field(
        5.0,
        ge=0,
        description="a stream is silent no longer: it begins without its first token, and comment lines fill pauses; "
        "0 is off",
    )
    health_interval_seconds: float = Field(1.0, gt=0, description="pause between two checks of a worker")
    health_timeout_seconds: float = Field(
        2.0,
        gt=0,
        description="a slower health check counts as failed; after twice this time without an answer, calls of which a "
        "worker says nothing are moved to another one",
    )
    shutdown_grace_seconds: float = Field(30.0, ge=0, description="time for running answers after SIGTERM")
    shutdown_delay_seconds: float = Field(
        0.0,
        ge=0,
        description="time from SIGTERM in which /ready fails and requests are still served, until a load "
        "balancer has seen it",
    )

    @property
    def model_name(self) -> str:
        """The name that clients use for the served model."""
        return self.served_model_name or served_name(self.model)

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """What it shows to workers, and to clients."""
        return super().certificates + (() if self.http_tls_cert is None else (self.http_tls_cert.read_bytes(),))

    @property
    def selection(self) -> Selection:
        """What a request gets that does not choose."""
        names = ("method", "kv_retention", "kv_tokens", "struct_retention", "floor_tokens")
        return Selection.of({name: getattr(self, name) for name in names})
