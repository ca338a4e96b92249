"""Reads requests' bodies within bounds: how large one may be, how slowly it may come, and how much all may hold."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request

from common.errors import DeadlineError, OverloadedError, StructKVError
from services.gateway.http.content import Decompressor, check_type, coding_of
from services.gateway.http.crowding import network_of
from services.gateway.http.errors import BodyTimeoutError, BodyTooLargeError

_MIN_BYTES_PER_SECOND = 500
"""As Apache has it: far below any network that people use, so only who means to be slow is slower."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds on bodies.

    Attributes:
        max_bytes: of one, packed or unpacked.
        max_reading_bytes: of all that are being read.
        timeout_seconds: without a byte, and for the whole body on top of what its bytes take at the lowest rate.
    """

    max_bytes: int
    max_reading_bytes: int
    timeout_seconds: float


@dataclass(eq=False, slots=True)
class _Upload:
    """A body that is being read."""

    network: str
    deadline: float
    began: float = field(default_factory=time.monotonic)
    body: bytearray = field(default_factory=bytearray)
    timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    made_room: bool = False

    def due(self, seconds: float) -> float:
        """Return when more has to be there, with so many seconds to spare (monotonic)."""
        now, num_bytes = time.monotonic(), len(self.body)
        return min(now + seconds, self.began + seconds + num_bytes / _MIN_BYTES_PER_SECOND, self.deadline)

    def error(self) -> StructKVError:
        """Return why it was given up."""
        if self.made_room:
            return OverloadedError("too much is being sent at once (max_reading_bytes), most of it here")
        if time.monotonic() >= self.deadline:
            return DeadlineError("the request's body did not arrive in time")
        return BodyTimeoutError("the request's body came too slowly (body_timeout_seconds)")


class BodyReader:
    """Reads the bodies of all requests, which share the memory for it."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._uploads: set[_Upload] = set()
        self._num_bytes = 0
        self._decompressor = Decompressor()

    async def read(self, http: Request, deadline: float) -> bytes:
        """Return a body, unpacked and whole by `deadline` (monotonic).

        Raises UnsupportedMediaTypeError and BodyTooLargeError, before reading where the headers say so,
        BodyTimeoutError, DeadlineError, OverloadedError where others need the room, and starlette's ClientDisconnect.
        """
        check_type(http.headers)
        coding = coding_of(http.headers)
        declared = http.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._limits.max_bytes:
            raise self._too_large()
        with self._upload(http, deadline) as upload:
            try:
                async with upload.timeout:
                    await self._receive(http, upload)
            except TimeoutError:
                raise upload.error() from None
            if upload.made_room:  # its last byte came at the same moment
                raise upload.error()
            self._uploads.discard(upload)
            body = bytes(upload.body)
            return await self._decompressor.unpack(body, coding, self._limits.max_bytes) if coding else body

    @contextmanager
    def _upload(self, http: Request, deadline: float) -> Iterator[_Upload]:
        upload = _Upload(network_of(http.client.host) if http.client else "", deadline)
        self._uploads.add(upload)
        try:
            yield upload
        finally:
            self._uploads.discard(upload)
            self._num_bytes -= len(upload.body)

    async def _receive(self, http: Request, upload: _Upload) -> None:
        upload.timeout.reschedule(upload.due(self._limits.timeout_seconds))
        async for part in http.stream():
            if upload.made_room:
                continue
            upload.body += part
            self._num_bytes += len(part)
            if len(upload.body) > self._limits.max_bytes:
                raise self._too_large()
            if self._num_bytes > self._limits.max_reading_bytes:
                self._make_room()
            if not upload.made_room:
                upload.timeout.reschedule(upload.due(self._limits.timeout_seconds))

    def _make_room(self) -> None:
        """Give a body up: of the place that sends most, the one that has held most memory for longest."""
        now, sizes = time.monotonic(), Counter[str]()
        candidates = [upload for upload in self._uploads if not upload.timeout.expired()]
        for upload in candidates:
            sizes[upload.network] += len(upload.body)
        leaving = max(candidates, key=lambda one: (sizes[one.network], len(one.body) * (now - one.began)))
        leaving.made_room = True
        self._num_bytes -= len(leaving.body)
        leaving.body.clear()
        leaving.timeout.reschedule(now)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the request body is larger than {self._limits.max_bytes} bytes")
