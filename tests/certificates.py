"""Certificates that tests make for themselves."""

from dataclasses import dataclass
from pathlib import Path

import trustme

from common.tls import Tls


@dataclass(frozen=True)
class PemFiles:
    """A service's certificate, its key, and the authority, as files."""

    cert: Path
    key: Path
    ca: Path

    @property
    def settings(self) -> dict[str, Path]:
        """The settings of a service that shows this certificate to the others."""
        return {"tls_cert": self.cert, "tls_key": self.key, "tls_ca": self.ca}

    @property
    def http_settings(self) -> dict[str, Path]:
        """The settings of a gateway that shows this certificate to its clients."""
        return {"http_tls_cert": self.cert, "http_tls_key": self.key}

    def tls(self, peer_name: str = "") -> Tls:
        """The files' contents."""
        return Tls(self.cert.read_bytes(), self.key.read_bytes(), self.ca.read_bytes(), peer_name)


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder

    def issue(self, name: str) -> PemFiles:
        """Return a new certificate for a host name or address."""
        folder = self._folder / name
        folder.mkdir(parents=True)
        files = PemFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        leaf = self._ca.issue_cert(name)
        leaf.cert_chain_pems[0].write_to_path(files.cert)
        leaf.private_key_pem.write_to_path(files.key)
        self._ca.cert_pem.write_to_path(files.ca)
        return files
