"""The calls of a request with several prompts, read as one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Self

from common.pb import decode_pb2
from services.gateway.workers.decode_client import DecodeCall, DecodeClient

_OPENING = 8
"""Prompts of one request on their way to their first tokens: enough to keep prefill busy. All 64 at once keep a decode
worker's event loop busy, which takes the interpreter from its steps."""


class DecodeCalls:
    """Running calls, one for each prompt. Whoever has them closes them."""

    def __init__(self, calls: Sequence[DecodeCall]) -> None:
        self._calls = tuple(calls)
        self._idle = list(range(len(calls)))
        self._reads: dict[asyncio.Task[decode_pb2.GenerateEvent | None], int] = {}
        self._ready: deque[tuple[int, decode_pb2.GenerateEvent]] = deque()

    @classmethod
    async def open(cls, client: DecodeClient, requests: Sequence[decode_pb2.GenerateRequest], deadline: float) -> Self:
        """Open all calls, a few at a time; wait for each one's first event. If one fails, the others are cancelled."""
        if len(requests) == 1:
            return cls([await client.open(requests[0], deadline)])
        turn = asyncio.Semaphore(_OPENING)

        async def open_one(request: decode_pb2.GenerateRequest) -> DecodeCall:
            async with turn:
                return await client.open(request, deadline)

        opening = [asyncio.create_task(open_one(request)) for request in requests]
        try:
            return cls(await asyncio.gather(*opening))
        except BaseException:
            for task in opening:
                task.cancel()
            for opened in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(opened, DecodeCall):
                    opened.close()
            raise

    @property
    def skeletons(self) -> list[decode_pb2.SkeletonStats]:
        """What decode tells of each prompt's skeleton."""
        return [call.skeleton for call in self._calls]

    async def read(self) -> tuple[int, decode_pb2.GenerateEvent] | None:
        """Return the next event and the place of its prompt; None when all answers are finished."""
        if len(self._calls) == 1:
            event = await self._calls[0].read()
            return None if event is None else (0, event)
        self._read_on()
        while self._reads and not self._ready:
            await self._collect()
        if not self._ready:
            return None
        place, event = self._ready.popleft()
        self._idle.append(place)
        return place, event

    def finish(self, place: int, answer: int) -> None:
        """Want no more of one answer to a prompt."""
        self._calls[place].finish(answer)

    def close(self) -> None:
        """Cancel what still runs. May be called again."""
        reads, self._reads = self._reads, {}
        for read in reads:
            read.cancel()
        if reads:
            asyncio.gather(*reads, return_exceptions=True)  # takes note of what else they failed with
        for call in self._calls:
            call.close()

    def _read_on(self) -> None:
        # Only calls whose last event has been dealt with: it may have been the last that is wanted.
        for place in self._idle:
            self._reads[asyncio.create_task(self._calls[place].read())] = place
        self._idle.clear()

    async def _collect(self) -> None:
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        for read in done:
            event = read.result()
            place = self._reads.pop(read)
            if event is not None:
                self._ready.append((place, event))
