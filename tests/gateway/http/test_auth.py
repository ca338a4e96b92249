"""Who is let in."""

import httpx
import openai
import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, StartGateway, listening

KEY, OTHER = "key-of-anna-0123456789", "key-of-bert-0123456789"
BODY = {"model": DEFAULT_MODEL, "prompt": "Once"}


@pytest.fixture
async def guarded(start_gateway: StartGateway) -> Gateway:
    return await start_gateway(api_keys=f"{OTHER},{KEY}")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("headers", [bearer(KEY), bearer(OTHER), {"Authorization": f"bearer  {KEY} "}])
async def test_a_known_key_is_let_in(guarded: Gateway, headers: dict[str, str]) -> None:
    assert (await guarded.http.post("/v1/completions", json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
        {"X-Api-Key": KEY},
        bearer(""),
        bearer(KEY[:-1]),
        bearer(f"{KEY}0"),
        bearer(f"{OTHER},{KEY}"),
        {"Authorization": b"Bearer schl\xfcssel"},
    ],
)
async def test_anything_else_is_refused_in_openais_shape(guarded: Gateway, headers: dict) -> None:
    response = await guarded.http.post("/v1/completions", json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
    assert not guarded.decode.requests


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/models/{DEFAULT_MODEL}", "/v1/nothing", "/tokenize", "/version", "/", "/health/"]
)
async def test_every_other_path_needs_a_key(guarded: Gateway, path: str) -> None:
    assert (await guarded.http.get(path)).status_code == 401
    assert (await guarded.http.get(path, headers=bearer(KEY))).status_code in {200, 404, 405}


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_needs_none(guarded: Gateway, path: str) -> None:
    assert (await guarded.http.get(path)).status_code in {200, 503}


async def test_the_body_is_not_read_before_the_key(guarded: Gateway) -> None:
    async def parts():
        pytest.fail("the body was asked for")
        yield b""

    assert (await guarded.http.post("/v1/completions", content=parts())).status_code == 401


async def test_without_keys_everybody_is_served(gateway: Gateway) -> None:
    assert (await gateway.http.get("/v1/models", headers=bearer("whatever"))).status_code == 200


async def test_the_official_client_knows_the_refusal(guarded: Gateway) -> None:
    async with listening(guarded.app) as url:
        for key, expected in ((KEY, None), ("wrong", openai.AuthenticationError)):
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                if expected is None:
                    assert (await client.completions.create(model=DEFAULT_MODEL, prompt="Once")).choices
                else:
                    with pytest.raises(expected):
                        await client.completions.create(model=DEFAULT_MODEL, prompt="Once")


async def test_a_refused_request_takes_no_place(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_keys=KEY, max_requests=1)
    responses: list[httpx.Response] = [await gateway.http.get("/v1/models") for _ in range(3)]
    assert {response.status_code for response in responses} == {401}
    assert (await gateway.http.get("/v1/models", headers=bearer(KEY))).status_code == 200
