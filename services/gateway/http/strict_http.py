"""HTTP/1.1 as RFC 9112 writes it, and nothing else: what two servers read differently smuggles requests past one.

h11 is lenient where the RFC allows it: it takes bare line feeds, folded headers, a Content-Length beside a
Transfer-Encoding, and chunk extensions of any length. Its readers are replaced here.
"""

import re
from dataclasses import dataclass
from typing import Any

import h11
from h11._readers import ChunkedReader, maybe_read_from_IDLE_client
from h11._receivebuffer import ReceiveBuffer
from h11._writers import ChunkedWriter

_HEAD_END = re.compile(rb"\n\r?\n")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_FOLDED = re.compile(rb"\r\n[ \t]")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r]*)", re.IGNORECASE)
_TRANSFER_ENCODING = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"[^\r]* HTTP/1\.[01]\r\n")
_OLD_REQUEST_LINE = re.compile(rb"[^\r]* HTTP/1\.0\r\n")
_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_PART_OF_A_CHUNK_HEAD = re.compile(rb"[0-9A-Fa-f]{1,16}\r?|")
_CHUNK_HEAD_BYTES = 18
_STATUS_LINE_START = b"HTTP/1.1 "
_MAX_LEADING_ZEROS = 6
_CHUNKS_A_READ = 32
"""To look at as many takes no longer than the read itself. Larger chunks than 8 KiB never are as many."""
_CHUNKS_A_TURN = 512


class StrictConnection(h11.Connection):
    """A server's connection. It can also give away the first bytes of what will be sent next, whatever that is.

    It reads only so many chunks of a body in one go: a byte in a chunk of its own takes a thousand times what it would
    among others.
    """

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self._sent_ahead = 0
        self._chunks = _Allowance(_CHUNKS_A_READ)

    @property
    def has_more(self) -> bool:
        """Whether something was received that is not read yet."""
        return len(self._receive_buffer) > 0

    @property
    def has_head(self) -> bool:
        """Whether a request's head, at least, was received and is not read yet."""
        return _HEAD_END.search(self._receive_buffer._data) is not None

    @property
    def head(self) -> bytes:
        """The head of the request that is to be read next; empty if it is not whole."""
        end = _HEAD_END.search(self._receive_buffer._data)
        return b"" if end is None else bytes(self._receive_buffer._data[: end.end()])

    @property
    def num_unread(self) -> int:
        """Bytes that were received and are not read yet."""
        return len(self._receive_buffer)

    @property
    def is_pipelining(self) -> bool:
        """Whether more was received than a first request without a body."""
        data = self._receive_buffer._data
        if self.their_state is not h11.IDLE or (end := _HEAD_END.search(data)) is None or end.end() == len(data):
            return False
        head = bytes(data[: end.end()])
        return not (_CONTENT_LENGTH.search(head) or _TRANSFER_ENCODING.search(head))

    @property
    def needs_turn(self) -> bool:
        """Whether the body goes on in more chunks than are read in one go."""
        return not self._chunks.left

    def take_turn(self) -> None:
        """Read on."""
        self._chunks.left = _CHUNKS_A_TURN

    def receive_data(self, data: bytes) -> None:
        """Take what was received, and read a part of it; but nothing more where a turn is due."""
        super().receive_data(data)
        if self._chunks.left:
            self._chunks.left = _CHUNKS_A_READ

    def next_event(self) -> Any:
        """Return what was received, as h11 has it; PAUSED until the next turn."""
        return super().next_event() if self._chunks.left else h11.PAUSED

    def next_byte(self) -> bytes:
        """Return a byte that is due whatever the answer will be, to be sent at once; empty if none is certain.

        These are the status line's beginning and, between two chunks, a leading zero of the next one's size.
        """
        if self.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            byte = _STATUS_LINE_START[self._sent_ahead : self._sent_ahead + 1]
        else:
            is_chunked = self.our_state is h11.SEND_BODY and isinstance(self._writer, ChunkedWriter)
            byte = b"0" if is_chunked and self._sent_ahead < _MAX_LEADING_ZEROS else b""
        self._sent_ahead += len(byte)
        return byte

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Return the bytes of an event, without those that were sent ahead."""
        is_head = isinstance(event, (h11.Response, h11.InformationalResponse))
        parts = super().send_with_data_passthrough(event)
        if parts and self._sent_ahead:
            if is_head:
                parts = [b"".join(parts)[self._sent_ahead :]]
            self._sent_ahead = 0
        return parts

    def _get_io_object(self, role: Any, event: Any, io_dict: Any) -> Any:
        found = super()._get_io_object(role, event, io_dict)
        if found is maybe_read_from_IDLE_client:
            return self._read_head
        return _ChunkReader(self._chunks) if isinstance(found, ChunkedReader) else found

    def _read_head(self, buffer: ReceiveBuffer) -> h11.Request | None:
        end = _HEAD_END.search(buffer._data)
        if end is not None:
            if end.end() > self._max_incomplete_event_size:
                raise h11.LocalProtocolError("the head is too large", error_status_hint=431)
            _check_head(bytes(buffer._data[: end.end()]))
        request: h11.Request | None = maybe_read_from_IDLE_client(buffer)
        return request if request is None else _with_path(request)


def _with_path(request: h11.Request) -> h11.Request:
    """Return a request that may be a proxy's, for a whole URL, as one for the URL's path."""
    origin = _ORIGIN.match(request.target)
    if origin is None:
        return request
    path = request.target[origin.end() :]
    return h11.Request(
        method=request.method,
        headers=request.headers,
        target=path if path.startswith(b"/") else b"/" + path,
        http_version=request.http_version,
    )


def _check_head(head: bytes) -> None:
    """Raise LocalProtocolError for a request line and headers that could be read in two ways."""
    lengths = _CONTENT_LENGTH.findall(head)
    is_chunked = _TRANSFER_ENCODING.search(head) is not None
    if _BARE_LINE_END.search(head):
        raise h11.LocalProtocolError("a line ends without CRLF")
    if not _REQUEST_LINE.match(head):
        raise h11.LocalProtocolError("this is not HTTP/1.1", error_status_hint=505)
    if _FOLDED.search(head):
        raise h11.LocalProtocolError("a header is folded")
    if len(lengths) + is_chunked > 1 or any(b"," in length for length in lengths):
        raise h11.LocalProtocolError("the body's length is told more than once")
    if is_chunked and _OLD_REQUEST_LINE.match(head):
        raise h11.LocalProtocolError("Transfer-Encoding is not HTTP/1.0")


@dataclass(slots=True)
class _Allowance:
    """How many chunks may still be read."""

    left: int


class _ChunkReader:
    """Reads a chunked body: many chunks in one go, since an event for every byte would keep the loop busy."""

    def __init__(self, allowance: _Allowance) -> None:
        self._allowance = allowance
        self._data_left = 0
        self._line_end_due = False
        self._is_last = self._is_over = False

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._is_over:  # the end came with the last data; what follows is the next request's
            return h11.EndOfMessage()
        raw, parts = buffer._data, list[bytearray]()
        at, before = self._read_whole(raw, parts), -1
        while at != before and not self._is_over:
            before = at
            if self._data_left:
                parts.append(raw[at : at + self._data_left])
                at += len(parts[-1])
                self._data_left -= len(parts[-1])
                self._line_end_due = not self._data_left
            elif self._line_end_due:
                at = self._skip_line_end(raw, at)
            elif self._allowance.left:
                at = self._read_size(raw, at)
        buffer._extract(at)
        if any(parts):
            return h11.Data(data=b"".join(parts))
        return h11.EndOfMessage() if self._is_over else None

    def _read_whole(self, raw: bytearray, parts: list[bytearray]) -> int:
        """Read chunks that are there as a whole, several times as quickly as step by step; return the place behind."""
        at = 0
        if self._data_left or self._line_end_due:
            return at
        while self._allowance.left and (size := _CHUNK_HEAD.match(raw, at)):
            start, end = size.end(), size.end() + int(size[1], 16)
            if end == start or raw[end : end + 2] != b"\r\n":
                break
            parts.append(raw[start:end])
            at = end + 2
            self._allowance.left -= 1
        return at

    def _skip_line_end(self, raw: bytearray, at: int) -> int:
        """Return the place behind a CRLF; the same place if it is not there yet."""
        found = raw[at : at + 2]
        if not b"\r\n".startswith(found):
            raise h11.LocalProtocolError("a chunk does not end where it should, or trailers follow")
        if len(found) < 2:
            return at
        self._line_end_due, self._is_over = False, self._is_last
        return at + 2

    def _read_size(self, raw: bytearray, at: int) -> int:
        """Return the place behind a chunk's size; the same place if it is not whole yet."""
        size = _CHUNK_HEAD.match(raw, at)
        if size is None:
            if not _PART_OF_A_CHUNK_HEAD.fullmatch(raw[at : at + _CHUNK_HEAD_BYTES]):
                raise h11.LocalProtocolError("a chunk's size is none, or has an extension")
            return at
        self._allowance.left -= 1
        self._data_left = int(size[1], 16)
        self._is_last = self._line_end_due = not self._data_left
        return size.end()
