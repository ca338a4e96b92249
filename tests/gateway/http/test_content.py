"""Bodies that are packed, and what is not read."""

import bz2
import gzip
import json
import time
import zlib

import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import Gateway, StartGateway
from tests.gateway.http.sockets import BODY


async def post(gateway: Gateway, body: bytes, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.http.post("/v1/completions", content=body, headers=named)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
)
async def test_a_packed_body_is_read(gateway: Gateway, coding: str, body: bytes) -> None:
    answer = await post(gateway, body, Content_Encoding=coding)
    assert answer.json()["choices"][0]["text"] == " upon a time"


async def test_a_long_packed_body_is_read_whole(gateway: Gateway) -> None:
    numbers = [number % 900 + 5 for number in range(3000)]
    body = json.dumps({"model": DEFAULT_MODEL, "prompt": numbers}).encode()
    assert (await post(gateway, gzip.compress(body), Content_Encoding="gzip")).status_code == 200
    assert list(gateway.decode.request.prompt_token_ids) == numbers


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "nonsense"])
async def test_what_is_packed_otherwise_is_refused_by_name(gateway: Gateway, coding: str) -> None:
    refused = await post(gateway, BODY, Content_Encoding=coding)
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "gzip, deflate"
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_media_type", "Content-Encoding")


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b"",
        gzip.compress(BODY)[:-5],
        gzip.compress(BODY)[:10] + b"\xff" * 50,
        gzip.compress(BODY) + b"rubbish",
        bz2.compress(BODY),
        gzip.compress(b"") * 100_000,
    ],
)
async def test_what_is_not_what_it_says_is_refused(gateway: Gateway, body: bytes) -> None:
    assert (await post(gateway, body, Content_Encoding="gzip")).status_code == 400


async def test_a_bomb_takes_no_more_than_a_body_may_have(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_body_bytes=1024 * 1024)
    bomb = gzip.compress(b" " * 400 * 1024 * 1024)
    started = time.monotonic()
    refused = await post(gateway, bomb, Content_Encoding="gzip")
    assert refused.status_code == 413
    assert time.monotonic() - started < 2
    fits = BODY + b" " * (1024 * 1024 - len(BODY))
    assert (await post(gateway, gzip.compress(fits), Content_Encoding="gzip")).status_code == 200
    assert (await post(gateway, gzip.compress(fits + b" "), Content_Encoding="gzip")).status_code == 413


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; Charset=UTF-8", 200),
        ('application/json; charset="utf-8"', 200),
        ("application/vnd.api+json", 200),
        ("application/x-www-form-urlencoded", 200),
        ("text/plain;charset=UTF-8", 200),
        ("application/json; charset=utf-16", 415),
        ("application/json; charset=iso-8859-1", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/xml", 415),
        ("image/png", 415),
        ("json", 415),
    ],
)
async def test_types_of_bodies(gateway: Gateway, kind: str, status: int) -> None:
    answer = await post(gateway, BODY, Content_Type=kind)
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["error"]["code"] == "unsupported_media_type"
