"""A DNS server that knows a few whole names, as a cluster's does: no search domains, no answer for half a name."""

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_A = 1
_RESPONSE, _NO_SUCH_NAME = 0x8180, 0x8183


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        query, sock = self.request
        name, end = _read_name(query, 12)
        (kind,) = struct.unpack_from("!H", query, end)
        address = self.server.addresses.get(name)  # type: ignore[attr-defined]
        answers = _answer(address) if address is not None and kind == _A else b""
        flags = _NO_SUCH_NAME if address is None else _RESPONSE
        header = struct.pack("!2sHHHHH", query[:2], flags, 1, bool(answers), 0, 0)
        sock.sendto(header + query[12 : end + 4] + answers, self.client_address)


def _read_name(query: bytes, position: int) -> tuple[str, int]:
    """Return the name that is asked for, in small letters, and where it ends."""
    labels = []
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode().lower())
        position += 1 + length
    return ".".join(labels), position + 1


def _answer(address: str) -> bytes:
    """Return the record of an address; its name is the question's, and it may be kept for a second."""
    return struct.pack("!HHHIH4s", 0xC00C, _A, 1, 1, 4, socket.inet_aton(address))


@contextmanager
def dns_server(addresses: Mapping[str, str]) -> Iterator[int]:
    """Answer for these names on loopback as long as the context lasts; yields the port."""
    with socketserver.UDPServer(("127.0.0.1", 0), _Handler) as server:
        server.addresses = addresses  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
