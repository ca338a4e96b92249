"""A worker that fails again and again while others do not is asked last, for a while; a bad request harms nobody."""

import asyncio
import time

import grpc
import pytest

from common.errors import StructKVError
from services.gateway.workers.decode_client import DecodeClient
from tests.gateway.conftest import ScriptedDecode, events
from tests.gateway.workers.test_failover import ANSWER, answer, request, start

__all__ = ["start"]  # the fixture

INTERNAL = grpc.StatusCode.INTERNAL


class Broken(ScriptedDecode):
    """Cannot compute, until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = False
        self.script_for = lambda _: events(ANSWER) if self.mended else [INTERNAL]


class Sound(ScriptedDecode):
    """Answers all requests but poison, after a moment: it is busy while the broken one is not."""

    def __init__(self) -> None:
        super().__init__()
        self.script_for = lambda request: [INTERNAL] if request.request_id == "poison" else [0.05, *events(ANSWER)]


async def ask_often(client: DecodeClient, num_requests: int) -> list[list[int]]:
    answers = []
    for _ in range(num_requests // 4):
        answers += await asyncio.gather(*(answer(client) for _ in range(4)))
    return answers


async def test_a_broken_worker_costs_no_answer_and_is_soon_left_alone(start) -> None:
    broken, sound = Broken(), Sound()
    client = await start(broken, sound)
    assert await ask_often(client, 40) == [ANSWER] * 40
    assert len(broken.requests) < 10
    assert len(sound.requests) == 40


async def test_most_may_be_broken(start) -> None:
    sound = Sound()
    client = await start(*(Broken() for _ in range(7)), sound)
    for _ in range(2):  # more are broken than a request may meet
        try:
            await answer(client)
        except StructKVError:
            continue
    assert await ask_often(client, 20) == [ANSWER] * 20


async def test_a_mended_worker_is_tried_and_works_again(start, caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    client = await start(broken, Sound())
    while not broken.requests:
        await answer(client)
    assert "worker rests" in caplog.text
    broken.mended = True
    asked, deadline = len(broken.requests), time.monotonic() + 10
    while len(broken.requests) < asked + 3:
        assert await answer(client) == ANSWER
        assert time.monotonic() < deadline


async def test_a_request_that_fails_everywhere_takes_no_worker_from_the_others(
    start, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Sound(), Sound()
    client = await start(*workers)
    poison = request()
    poison.request_id = "poison"

    async def poisoning() -> None:
        while True:
            with pytest.raises(StructKVError):
                await client.open(poison, time.monotonic() + 20)

    attack = asyncio.create_task(poisoning())
    await asyncio.sleep(0.1)
    assert await ask_often(client, 40) == [ANSWER] * 40
    attack.cancel()
    assert "worker rests" not in caplog.text
    for worker in workers:
        assert any(asked.request_id != "poison" for asked in worker.requests)
