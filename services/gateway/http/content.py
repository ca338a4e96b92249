"""What a body says that it is: JSON, perhaps compressed. What is not read is refused by name."""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from starlette.datastructures import Headers

from common.errors import InvalidRequestError
from services.gateway.http.errors import BodyTooLargeError, UnsupportedMediaTypeError

_TYPES = frozenset({"", "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded"})
"""JSON's, and what clients send that were not told (curl, `fetch`): their bodies are read as JSON."""
_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii"})
_ANY_FORMAT = zlib.MAX_WBITS | 32
"""gzip's header or zlib's, whichever is there."""
_CODINGS = {"gzip": _ANY_FORMAT, "x-gzip": _ANY_FORMAT, "deflate": _ANY_FORMAT}
_MAX_MEMBERS = 256
_PART_BYTES = 64 * 1024


def check_type(headers: Headers) -> None:
    """Raise UnsupportedMediaTypeError for a body that says that it is no JSON."""
    kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    if kind not in _TYPES and not kind.endswith("+json"):
        raise UnsupportedMediaTypeError(f"bodies of type {kind[:100]!r} are not read; send application/json")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip('"') not in _CHARSETS:
            raise UnsupportedMediaTypeError("only UTF-8 is read", param="Content-Type")


def coding_of(headers: Headers) -> str:
    """Return how a body is compressed, empty if it is not; raise UnsupportedMediaTypeError for what is not read."""
    coding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if coding in {"", "identity"}:
        return ""
    if coding not in _CODINGS:
        raise UnsupportedMediaTypeError(
            f"bodies with the encoding {coding[:100]!r} are not read; send gzip, deflate, or none",
            param="Content-Encoding",
        )
    return coding


class Decompressor:
    """Unpacks bodies in threads of its own, which other long work does not occupy."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="decompress")

    async def unpack(self, packed: bytes, coding: str, max_bytes: int) -> bytes:
        """Return a body's content of up to `max_bytes`; raise BodyTooLargeError, or InvalidRequestError for damage."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, unpacked, packed, _CODINGS[coding], max_bytes
        )


def unpacked(packed: bytes, window_bits: int, max_bytes: int) -> bytes:
    """Return the content; no more memory is taken than that and a part, however much it would become."""
    content, members, decoder = bytearray(), 1, zlib.decompressobj(window_bits)
    view = memoryview(packed)
    try:
        for start in range(0, len(view), _PART_BYTES):
            rest: bytes | memoryview = view[start : start + _PART_BYTES]
            while rest:
                if decoder.eof:
                    members += 1
                    decoder = zlib.decompressobj(window_bits)
                content += decoder.decompress(rest, max_bytes + 1 - len(content))
                if len(content) > max_bytes:
                    raise BodyTooLargeError(f"the request body is larger than {max_bytes} bytes when unpacked")
                if members > _MAX_MEMBERS:
                    raise InvalidRequestError("the request body is compressed in too many pieces")
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    except zlib.error:
        raise InvalidRequestError("the request body is not what its Content-Encoding says") from None
    if not decoder.eof:
        raise InvalidRequestError("the compressed request body is not complete")
    return bytes(content)
