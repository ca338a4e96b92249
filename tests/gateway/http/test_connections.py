"""Over real sockets: connections that are too many, too slow, too large, or encrypted."""

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from services.gateway.http.connections import MAX_HEAD_BYTES, ServerConfig
from services.gateway.settings import GatewaySettings
from tests.certificates import Authority
from tests.gateway.conftest import Gateway, ScriptedDecode, StartGateway, events, grpc_worker, listening, until
from tests.gateway.http.sockets import BODY, HEALTH, head, reachable

KEY = "key-of-anna-0123456789"


async def test_headers_that_trickle_end_the_connection(gateway: Gateway) -> None:
    async with reachable(gateway, header_timeout_seconds=0.3) as connect, connect() as client:
        await client.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert await client.is_closed_while_sending(b"x")


async def test_a_connection_that_says_nothing_is_closed(gateway: Gateway) -> None:
    async with reachable(gateway, header_timeout_seconds=0.3) as connect, connect() as client:
        assert await client.is_closed_while_sending()


async def test_a_second_request_may_not_trickle_either(gateway: Gateway) -> None:
    async with reachable(gateway, header_timeout_seconds=0.3) as connect, connect() as client:
        await client.send(HEALTH)
        assert await client.status() == 200
        await client.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert await client.is_closed_while_sending(b"x")


async def test_an_idle_connection_has_the_keep_alive_time(gateway: Gateway) -> None:
    async with reachable(gateway, header_timeout_seconds=0.2) as connect, connect() as client:
        for _ in range(2):
            await client.send(HEALTH)
            assert await client.status() == 200
            await asyncio.sleep(0.4)
        await client.send(HEALTH)
        assert await client.status() == 200


async def test_a_body_that_is_waited_for_may_take_longer(gateway: Gateway) -> None:
    async with reachable(gateway, header_timeout_seconds=0.2) as connect, connect() as client:
        await client.send(head(f"Content-Length: {len(BODY)}"))
        for part in (BODY[:5], BODY[5:9], BODY[9:]):
            await asyncio.sleep(0.15)
            await client.send(part)
        assert await client.status() == 200


async def test_a_body_that_nobody_waits_for_may_not_trickle(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_keys=KEY)
    async with reachable(gateway, header_timeout_seconds=0.3) as connect, connect() as client:
        await client.send(head("Content-Length: 1000000"))
        assert await client.status() == 401
        assert await client.is_closed_while_sending(b"x")


async def test_large_headers_are_refused(gateway: Gateway) -> None:
    async with reachable(gateway) as connect, connect() as client:
        await client.send(b"GET /health HTTP/1.1\r\nX-Large: ")
        assert await client.is_closed_while_sending(b"x" * MAX_HEAD_BYTES)


async def test_beyond_the_bound_the_connection_closes_that_was_idle_longest(gateway: Gateway) -> None:
    async with reachable(gateway, max_connections=2) as connect, connect() as first, connect() as second:
        for client in (second, first):
            await client.send(HEALTH)
            assert await client.status() == 200
        async with connect() as third:
            for client in (third, first):
                await client.send(HEALTH)
                assert await client.status() == 200
            assert await second.is_closed_while_sending()


async def test_whoever_waits_for_an_answer_keeps_the_connection(gateway: Gateway) -> None:
    let_go = asyncio.Event()
    gateway.decode.script.insert(0, let_go)
    async with reachable(gateway, max_connections=1) as connect, connect() as first:
        await first.send(head(f"Content-Length: {len(BODY)}") + BODY)

        async def it_runs() -> bool:
            return bool(gateway.decode.requests)

        await until(it_runs)
        async with connect() as second:
            assert await second.is_closed_while_sending(HEALTH)
        let_go.set()
        assert await first.status() == 200


async def test_https(gateway: Gateway, tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    trust = ssl.create_default_context(cafile=str(files.ca))
    async with listening(gateway.app, **files.http_settings) as url:
        async with httpx.AsyncClient(verify=trust) as http:
            answer = await http.post(f"{url}/v1/completions", content=BODY)
            assert answer.json()["choices"][0]["text"] == " upon a time"
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"{url}/health")
            with pytest.raises(httpx.TransportError):
                await stranger.get(f"{url.replace('https', 'http')}/health")


async def test_a_handshake_is_a_connection_among_as_many_as_there_may_be(gateway: Gateway, tmp_path: Path) -> None:
    """Whoever opens connections and does not go on with them keeps nobody out, and has the time of a head for it."""
    files = Authority(tmp_path).issue("127.0.0.1")
    trust = ssl.create_default_context(cafile=str(files.ca))
    tls = {**files.http_settings, "max_connections": 3, "header_timeout_seconds": 3}
    async with reachable(gateway, **tls) as connect, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connect()) for _ in range(3)]
        async with httpx.AsyncClient(verify=trust) as http:
            for _ in range(2):  # on one connection
                assert (await http.get(f"https://127.0.0.1:{silent[0].port}/health")).status_code == 200
        assert await silent[0].is_closed_while_sending(), "the first of those that wait makes room"
        assert not await silent[2].is_closed_while_sending(seconds=0.2), "one is enough"
        assert await silent[2].is_closed_while_sending(seconds=10)


async def test_old_versions_of_tls_are_off(gateway: Gateway, tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    settings = GatewaySettings(decode_workers="a:1", prefill_workers="b:1", **files.http_settings)
    config = ServerConfig(gateway.app, settings)
    config.load()
    assert config.ssl is not None
    assert config.ssl.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_workers_are_reached_over_mutual_tls(start_gateway: StartGateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    worker, own = authority.issue("127.0.0.1").tls(), authority.issue("gateway")
    async with grpc_worker(ScriptedDecode(events([42])), tls=worker) as decode, grpc_worker(tls=worker) as prefill:
        workers = {"decode_workers": decode, "prefill_workers": prefill}
        assert (await (await start_gateway(**workers, **own.settings)).complete()).status_code == 200
        assert (await (await start_gateway(**workers)).complete()).status_code == 503
