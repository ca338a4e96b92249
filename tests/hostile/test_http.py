"""The gateway under malformed requests."""

import json
import random

import httpx
import psutil

from tests.gateway.conftest import (  # noqa: F401  fixtures
    Gateway,
    StartGateway,
    as_asked,
    fork_server_of,
    start_gateway,
    text_model,
)
from tests.hostile.bodies import bent

NUM_REQUESTS = 7000
_METHODS = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
_PATHS = [
    "/v1/completions",
    "/v1/models",
    "/v1/models/x",
    "/v1/models/%00",
    "/v2",
    "/",
    "/health",
    "/v1//completions",
    "/tokenize",
    "/version",
]
_TYPES = ["application/json", "text/plain", "multipart/form-data", "", "application/json; charset=utf-7"]


async def send(gateway: Gateway, dice: random.Random) -> httpx.Response:
    if dice.random() < 0.1:
        return await gateway.http.request(dice.choice(_METHODS), dice.choice(_PATHS), content=dice.randbytes(20))
    path, data = bent(dice)
    headers = {"Content-Type": dice.choice(_TYPES)}
    if dice.random() < 0.2:
        odd = ["", "-1", "nan", "1e9", "x" * 5000, "a b", "\x7f"]
        headers[dice.choice(["X-Request-Id", "X-Request-Timeout", "Content-Length", "traceparent"])] = dice.choice(odd)
    return await gateway.http.post(path, content=data, headers=headers)


def check(response: httpx.Response) -> None:
    assert response.status_code < 500 or response.status_code in {503, 504}, response.text
    if response.status_code >= 400 and response.request.method != "HEAD":
        error = json.loads(response.text)["error"]
        assert error["message"]
        assert error["type"]


async def test_malformed_requests_are_the_callers_fault_and_cost_nothing(start_gateway: StartGateway) -> None:  # noqa: F811
    gateway = await start_gateway(request_timeout_seconds=20)
    gateway.decode.script_for = as_asked
    dice, process = random.Random(7), psutil.Process()
    for _ in range(NUM_REQUESTS // 3):
        check(await send(gateway, dice))
    before = process.memory_info().rss
    for _ in range(NUM_REQUESTS - NUM_REQUESTS // 3):
        check(await send(gateway, dice))
    assert process.memory_info().rss - before < 32 * 2**20
    gateway.decode.requests.clear()
    assert (await gateway.complete()).status_code == 200
