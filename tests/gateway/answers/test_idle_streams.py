"""Many clients at once that wait for their next token."""

import asyncio

import httpx

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, listening
from tests.gateway.test_api import frames

NUM_STREAMS = 200


async def test_two_hundred_open_streams_all_finish(gateway: Gateway) -> None:
    go_on = asyncio.Event()
    gateway.decode.script.insert(1, go_on)
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}
    begun: set[int] = set()

    async def ask(http: httpx.AsyncClient, number: int) -> str:
        text = ""
        async with http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for part in response.aiter_text():
                begun.add(number)
                text += part
        chunks = frames(httpx.Response(200, headers=response.headers, text=text))
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    async with (
        listening(gateway.app) as url,
        httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None), timeout=60) as http,
        asyncio.TaskGroup() as group,
    ):
        streams = [group.create_task(ask(http, number)) for number in range(NUM_STREAMS)]
        async with asyncio.timeout(60):
            while len(begun) < NUM_STREAMS:
                await asyncio.sleep(0.05)
        assert (await http.get("/health")).status_code == 200
        go_on.set()
        assert [await stream for stream in streams] == [" upon a time"] * NUM_STREAMS
