"""How much one request, and all of them together, may ask for."""

import asyncio

import pytest

from services.gateway.requests.messages import MAX_MESSAGES
from tests.gateway.conftest import Gateway, StartGateway, until


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_beyond_the_bound_are_told_to_come_again(start_gateway: StartGateway, stream: bool) -> None:
    gateway = await start_gateway(max_requests=2)
    gateway.decode.script.insert(1, 0.5)
    running = [asyncio.create_task(gateway.complete(stream=stream)) for _ in range(2)]

    async def both_run() -> bool:
        return len(gateway.decode.requests) == 2

    await until(both_run)
    refused = await gateway.complete()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"
    assert (await gateway.http.get("/health")).status_code == 200
    assert {(await task).status_code for task in running} == {200}
    assert (await gateway.complete()).status_code == 200


async def test_a_failed_request_gives_its_place_back(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_requests=1)
    for _ in range(3):
        assert (await gateway.complete(model="gpt-9")).status_code == 404
        assert (await gateway.http.post("/v1/completions", content=b"{")).status_code == 400


async def test_a_prompt_beyond_the_gateways_own_limit(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_prompt_tokens=10)
    assert (await gateway.complete(prompt=[42] * 10)).status_code == 200
    refused = await gateway.complete(prompt=[42] * 11)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert (await gateway.chat()).json()["error"]["param"] == "messages"
    assert len(gateway.decode.requests) == 1


async def test_messages_beyond_the_limit(gateway: Gateway) -> None:
    message = {"role": "user", "content": "a"}
    refused = await gateway.chat(messages=[message] * (MAX_MESSAGES + 1))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages"
    assert (await gateway.chat(messages=[message] * 100)).status_code == 200
