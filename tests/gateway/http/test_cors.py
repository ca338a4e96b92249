"""Pages that ask from a browser, and HEAD."""

import pytest
from pydantic import ValidationError

from common.settings import DEFAULT_MODEL
from services.gateway.settings import GatewaySettings
from tests.gateway.conftest import Gateway, StartGateway
from tests.gateway.http.sockets import reachable

KEY = "key-of-anna-0123456789"
PAGE = "https://chat.example.org"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


async def test_without_the_setting_no_page_is_let_in(gateway: Gateway) -> None:
    answer = await gateway.http.get("/v1/models", headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await gateway.http.options("/v1/completions", headers=PREFLIGHT)).status_code == 405


@pytest.mark.parametrize(("origins", "allowed"), [(PAGE, PAGE), ("*", "*"), (f"http://a.example:8080, {PAGE}", PAGE)])
async def test_a_preflight_needs_no_key(start_gateway: StartGateway, origins: str, allowed: str) -> None:
    gateway = await start_gateway(api_keys=KEY, cors_origins=origins)
    answer = await gateway.http.options("/v1/chat/completions", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == allowed
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "access-control-allow-credentials" not in answer.headers


async def test_another_page_is_not_let_in(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(cors_origins=PAGE)
    other = {"Origin": "https://other.example.org"}
    assert (
        "access-control-allow-origin"
        not in (await gateway.http.options("/v1/models", headers=PREFLIGHT | other)).headers
    )
    answer = await gateway.http.get("/v1/models", headers=other)
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]


async def test_answers_and_errors_may_be_read_by_the_page(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(api_keys=KEY, cors_origins=PAGE, max_requests=1)
    known = {"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
    body = {"model": DEFAULT_MODEL, "prompt": "Once"}

    def broken(*_: object) -> None:
        raise RuntimeError

    statuses = []
    for headers, sent in ((known, body), ({"Origin": PAGE}, body), (known, {}), (known, body)):
        if len(statuses) == 3:
            monkeypatch.setattr("services.gateway.intake.work.plan_all", broken)
        answer = await gateway.http.post("/v1/completions", json=sent, headers=headers)
        statuses.append(answer.status_code)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        assert answer.headers["x-request-id"]
    assert statuses == [200, 401, 400, 500]


@pytest.mark.parametrize("origins", ["chat.example.org", f"{PAGE}/", f"{PAGE}/path", "https://*.example.org", "null"])
def test_what_is_no_origin_stops_the_start(origins: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        GatewaySettings(decode_workers="a:1", prefill_workers="b:1", cors_origins=origins)


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/version", "/v1/models", f"/v1/models/{DEFAULT_MODEL}", "/openapi.json"]
)
async def test_head_is_get_without_its_body(gateway: Gateway, path: str) -> None:
    async with reachable(gateway) as connect, connect() as client:
        heads = []
        for method in ("HEAD", "GET"):
            await client.send(f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Request-Id: one\r\n\r\n".encode())
            heads.append(await client.head(with_body=method == "GET"))
        first, second = ([line for line in one.split(b"\r\n") if not line.startswith(b"date")] for one in heads)
        if path == "/metrics":  # whose length changes with what it tells
            first, second = first[:1], second[:1]
        assert first == second


@pytest.mark.parametrize(("path", "status"), [("/v1/completions", 405), ("/nothing", 404), ("/v1/models/other", 404)])
async def test_head_of_what_has_no_get(gateway: Gateway, path: str, status: int) -> None:
    assert (await gateway.http.head(path)).status_code == status
