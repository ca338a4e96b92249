"""A request's time: the gateway's limit, or less where the client says so."""

import asyncio

import httpx
import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, StartGateway


async def ask(gateway: Gateway, seconds: str, **body: object) -> httpx.Response:
    headers = [(b"X-Request-Timeout", seconds.encode())]
    return await gateway.http.post(
        "/v1/completions", json={"model": DEFAULT_MODEL, "prompt": "Once"} | body, headers=headers
    )


@pytest.mark.parametrize("sent", ["7", "7.0", "0.7e1"])
async def test_the_clients_time_reaches_decode(gateway: Gateway, sent: str) -> None:
    assert (await ask(gateway, sent)).status_code == 200
    assert gateway.decode.time_remaining is not None
    assert 5 < gateway.decode.time_remaining <= 7


@pytest.mark.parametrize("sent", ["60", "1e999"])
async def test_the_gateways_limit_stands(start_gateway: StartGateway, sent: str) -> None:
    gateway = await start_gateway(request_timeout_seconds=5)
    assert (await ask(gateway, sent)).status_code == 200
    assert gateway.decode.time_remaining is not None
    assert gateway.decode.time_remaining <= 5


@pytest.mark.parametrize("sent", ["", "0", "0.0", "-1", "soon", "nan", "inf", "1_0", "5 s", "1e-999", "\u0665"])
async def test_no_time_at_all_is_refused_by_name(gateway: Gateway, sent: str) -> None:
    response = await ask(gateway, sent)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "X-Request-Timeout"
    assert "X-Request-Timeout" in error["message"]
    assert not gateway.decode.requests


async def test_before_the_first_token_it_is_a_504(gateway: Gateway) -> None:
    gateway.decode.script = [asyncio.Event()]
    response = await ask(gateway, "0.3", stream=True)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    async with asyncio.timeout(5):
        await gateway.decode.cancelled.wait()


async def test_after_it_an_event_of_the_stream(gateway: Gateway) -> None:
    gateway.decode.script.insert(1, asyncio.Event())
    response = await ask(gateway, "0.3", stream=True)
    assert response.status_code == 200
    *_, error, done, rest = response.text.split("\n\n")
    assert '"code":"deadline_exceeded"' in error
    assert (done, rest) == ("data: [DONE]", "")
