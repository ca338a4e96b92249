"""Whose a request is: workers share themselves among clients by it, and so does the gateway."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.requests import Request

from common.settings import DEFAULT_MODEL
from services.gateway.http.api_keys import ApiKey
from services.gateway.http.client import client_of
from tests.gateway.conftest import Gateway, StartGateway, until

ANNA, BERT = "key-of-anna-0123456789", "key-of-bert-0123456789"
KEYS = tuple(ApiKey(SecretStr(key)) for key in (ANNA, BERT))


async def ask(gateway: Gateway, key: str, **fields: Any) -> int:
    """Ask with a key; return the answer's status."""
    body = {"model": DEFAULT_MODEL, "prompt": "Once", **fields}
    response = await gateway.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    return response.status_code


async def test_a_keys_requests_are_one_clients(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_keys=KEYS)
    for key in (ANNA, BERT, ANNA):
        assert await ask(gateway, key, prompt=["One", "Two"]) == 200
    clients = [request.client for request in gateway.decode.requests]
    anna, bert = clients[0], clients[2]
    assert anna != bert
    assert clients == [anna, anna, bert, bert, anna, anna]
    assert 0 not in clients


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_without_keys_it_is_the_networks(one: str, other: str, same: bool) -> None:
    clients = [
        client_of(Request({"type": "http", "headers": [], "client": (address, 5000)})) for address in (one, other)
    ]
    assert (clients[0] == clients[1]) is same
    assert all(0 < client < 2**64 for client in clients)


async def test_one_client_leaves_others_a_place(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_keys=KEYS, max_requests=9)
    answering = asyncio.Event()
    gateway.decode.script.insert(1, answering)
    running = [asyncio.create_task(ask(gateway, ANNA)) for _ in range(8)]

    async def all_run() -> bool:
        return len(gateway.decode.requests) == len(running)

    await until(all_run)
    assert await ask(gateway, ANNA) == 429
    running.append(asyncio.create_task(ask(gateway, BERT)))
    await until(all_run)
    assert await ask(gateway, BERT) == 429
    answering.set()
    assert await asyncio.gather(*running) == [200] * 9
    assert await ask(gateway, ANNA) == 200
