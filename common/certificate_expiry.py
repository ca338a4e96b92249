"""When a certificate ends, which Python's ssl module tells of a peer's certificate only."""

import re
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from math import inf

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17


def first_expiry(files: Iterable[bytes]) -> float:
    """Return when the first of the certificates in these PEM files ends, in Unix time; infinity where there is none."""
    texts = (text for file in files for text in _PEM.findall(file.decode()))
    return min((_not_after(ssl.PEM_cert_to_DER_cert(text)) for text in texts), default=inf)


def _not_after(certificate: bytes) -> float:
    """Read the end of the validity, RFC 5280's fifth field: version, serial number, signature, issuer, validity."""
    [(_, whole)] = _values(certificate)
    _, to_be_signed = next(_values(whole))
    fields = [value for tag, value in _values(to_be_signed) if tag != _VERSION]
    _, (tag, ends) = _values(fields[3])
    text = ends.decode()
    if tag == _UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Split DER into its values and their tags."""
    position = 0
    while position < len(der):
        tag, length, start = der[position], der[position + 1], position + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[position + 2 : start], "big")
        yield tag, der[start : start + length]
        position = start + length
