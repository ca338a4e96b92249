"""Settings of the HTTP endpoint: who may use it, and TLS towards clients."""

from typing import Self

from pydantic import Field, model_validator

from common.settings import EnvironmentSettings
from common.tls import PemFile, check_key_pair
from services.gateway.http.api_keys import ApiKey, ApiKeys, ApiKeysFile


class EndpointSettings(EnvironmentSettings):
    """Read from `STRUCTKV_*`."""

    api_keys: ApiKeys = Field(
        default=(),
        description="keys that clients send, separated by commas; flags show in process lists, so use the variable",
    )
    api_keys_file: ApiKeysFile = Field(
        default=(),
        description="file with a key a line, # for comments; adds to api_keys. `KEY priority=-10` sets a key's own "
        "most_urgent_priority",
    )
    http_tls_cert: PemFile | None = Field(
        default=None, description="PEM file of the endpoint's certificate chain, for HTTPS"
    )
    http_tls_key: PemFile | None = Field(default=None, description="PEM file of its private key")

    @property
    def all_api_keys(self) -> tuple[ApiKey, ...]:
        """The keys of both settings; empty if everybody is served."""
        return self.api_keys + self.api_keys_file

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "http" if self.http_tls_cert is None else "https"

    @model_validator(mode="after")
    def _check_http_tls(self) -> Self:
        if (self.http_tls_cert is None) != (self.http_tls_key is None):
            raise ValueError("http_tls_cert and http_tls_key go together: set both, or none")
        if self.http_tls_cert is not None and self.http_tls_key is not None:
            check_key_pair("http_tls", self.http_tls_cert, self.http_tls_key)
        return self
