"""Certificates and keys. Files are read and checked at the start, so that a wrong one is named there and not in a
handshake that fails later.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


@dataclass(frozen=True, slots=True)
class Tls:
    """What a service shows the others, and whom it believes.

    Attributes:
        certificate: PEM of its certificate and what leads to the authority.
        key: PEM of the certificate's private key.
        authority: PEM of the authority that signed every service's certificate.
        peer_name: name that workers' certificates carry; empty where it is the host they are reached by.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    peer_name: str = ""


def _readable(path: Path) -> Path:
    try:
        path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return path


PemFile = Annotated[Path, AfterValidator(_readable)]
"""A file that can be read when the settings are."""


def check_key_pair(setting: str, certificate: Path, key: Path) -> None:
    """Raise ValueError, with the settings' names, unless the files are a certificate and its private key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        raise ValueError(
            f"{setting}_cert and {setting}_key: {certificate} and {key} are not a certificate and its private key"
        ) from error
    except _EncryptedKeyError as error:
        raise ValueError(f"{setting}_key: {key} is encrypted, and there is nobody to ask for its password") from error


def check_authority(setting: str, authority: Path) -> None:
    """Raise ValueError, with the setting's name, unless the file holds certificates."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(authority)
    except ssl.SSLError as error:
        raise ValueError(f"{setting}: {authority} holds no certificate") from error


class _EncryptedKeyError(Exception):
    """OpenSSL wants a password; it would ask at the terminal."""


def _no_password() -> str:
    raise _EncryptedKeyError
