"""A worker that is told to stop takes nothing new and ends what it has."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from common import rpc
from common.errors import UnavailableError, from_rpc
from common.pb import decode_pb2, decode_pb2_grpc
from tests.gateway.conftest import ScriptedDecode, events, free_port, until

FIRST, LAST = events([5, 6])


@dataclass
class Serving:
    """A worker that serves, and a caller's channel to it."""

    worker: ScriptedDecode
    task: asyncio.Task[None]
    channel: grpc.aio.Channel

    def call(self) -> "grpc.aio.UnaryStreamCall[decode_pb2.GenerateRequest, decode_pb2.GenerateEvent]":
        return decode_pb2_grpc.DecodeStub(self.channel).Generate(decode_pb2.GenerateRequest())

    async def is_refusing(self) -> bool:
        """Tell whether a new call is refused, as one that another worker can take."""
        call = self.call()
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return isinstance(from_rpc(error), UnavailableError)
        call.cancel()
        return False


@asynccontextmanager
async def serving(worker: ScriptedDecode, grace_seconds: float) -> AsyncIterator[Serving]:
    port = free_port()
    task = asyncio.create_task(
        rpc.serve(
            lambda server: decode_pb2_grpc.add_DecodeServicer_to_server(worker, server),
            asyncio.sleep(3600),
            host="127.0.0.1",
            port=port,
            grace_seconds=grace_seconds,
            max_rpcs=100,
            tls=None,
            makes_progress=lambda: True,
        )
    )
    async with rpc.open_channel(f"127.0.0.1:{port}") as channel:
        await until(lambda: rpc.is_serving(channel, 1))
        yield Serving(worker, task, channel)
        async with asyncio.timeout(5):
            await task


async def test_what_runs_ends_and_what_is_new_is_handed_on() -> None:
    let_go = asyncio.Event()
    async with serving(ScriptedDecode([FIRST, let_go, LAST]), grace_seconds=30) as it:
        running = it.call()
        await running.read()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(it.is_refusing)
        assert not await rpc.is_serving(it.channel, 1)
        assert not it.task.done()
        let_go.set()
        assert list((await running.read()).token_ids) == [6]
        assert await running.read() is grpc.aio.EOF


async def test_with_nothing_running_it_ends_at_once() -> None:
    async with serving(ScriptedDecode(), grace_seconds=30) as it:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await it.task


async def test_what_is_not_done_within_the_grace_time_may_be_handed_on() -> None:
    async with serving(ScriptedDecode([FIRST, asyncio.Event()]), grace_seconds=0.1) as it:
        running = it.call()
        await running.read()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await running.read()
        assert isinstance(from_rpc(ended.value), UnavailableError)
