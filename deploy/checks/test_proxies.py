"""The gateway behind the proxies that most people have, as they are when little is set."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from common.settings import DEFAULT_MODEL
from deploy.checks.tools import located
from tests.gateway.conftest import events, free_port, until
from tests.gateway.test_process import Running, running

BODY = {"model": DEFAULT_MODEL, "prompt": "Once"}
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client {seconds}s
    timeout server {seconds}s
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateway
backend gateway
    server one 127.0.0.1:{upstream}
"""
NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream gateway {{
        server 127.0.0.1:{upstream};
        {keepalive}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_read_timeout {seconds}s;
            {http_1_1}
        }}
    }}
}}
"""
PROXIES = ("haproxy", "nginx", "nginx with keep-alive")


@asynccontextmanager
async def proxied(name: str, gateway: Running, folder: Path, seconds: int) -> AsyncIterator[httpx.AsyncClient]:
    """Start a proxy that waits so long for the gateway; yield a client of the proxy."""
    port, config = free_port(), folder / "proxy.cfg"
    keeps = name == "nginx with keep-alive"
    text = (HAPROXY if name == "haproxy" else NGINX).format(
        port=port,
        upstream=gateway.http.base_url.port,
        seconds=seconds,
        keepalive="keepalive 8;" if keeps else "",
        http_1_1='proxy_http_version 1.1; proxy_set_header Connection "";' if keeps else "",
    )
    config.write_text(text)
    flags = ["-db", "-f", config] if name == "haproxy" else ["-p", folder, "-e", folder / "error.log", "-c", config]
    process = await asyncio.create_subprocess_exec(located(name.split()[0]), *flags)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:

            async def answers() -> bool:
                try:
                    return (await http.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers)
            yield http
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize(("heartbeat_seconds", "survives"), [(1, True), (0, False)])
async def test_a_stream_outlives_the_proxys_patience(
    name: str, heartbeat_seconds: float, survives: bool, tmp_path: Path
) -> None:
    """The first token takes longer than the proxy waits, and so does a pause; without heartbeats it is cut."""
    first, last = events([5, 6])
    async with (
        running(4.0, first, 4.0, last, stream_heartbeat_seconds=heartbeat_seconds) as gateway,
        proxied(name, gateway, tmp_path, seconds=3) as http,
    ):
        response = await http.post("/v1/completions", json=BODY | {"stream": True})
        assert (response.status_code == 200) == survives
        assert response.text.endswith("data: [DONE]\n\n") == survives


@pytest.mark.parametrize("name", PROXIES)
async def test_connections_are_used_again_without_a_502(name: str, tmp_path: Path) -> None:
    async with (
        running(*events([5, 6])) as gateway,
        proxied(name, gateway, tmp_path, seconds=60) as http,
    ):
        for pause in (0.0, 0.0, 4.95, 5.0, 5.05, 12.0):
            await asyncio.sleep(pause)
            answers = await asyncio.gather(*(http.post("/v1/completions", json=BODY) for _ in range(4)))
            assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("name", PROXIES)
async def test_packed_bodies_and_head_pass(name: str, tmp_path: Path) -> None:
    async with running(*events([5, 6])) as gateway, proxied(name, gateway, tmp_path, seconds=60) as http:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        packed = await http.post("/v1/completions", content=gzip.compress(json.dumps(BODY).encode()), headers=headers)
        assert packed.status_code == 200
        assert (await http.post("/v1/completions", json=BODY, headers={"Content-Encoding": "br"})).status_code == 415
        head = await http.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("name", PROXIES)
async def test_a_client_that_leaves_its_stream_ends_the_work(name: str, tmp_path: Path) -> None:
    async with (
        running(asyncio.Event(), stream_heartbeat_seconds=0.5) as gateway,
        proxied(name, gateway, tmp_path, seconds=60) as http,
    ):
        async with http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as response:
            await anext(response.aiter_text())
        await asyncio.wait_for(gateway.decode.cancelled.wait(), 10)


async def test_haproxy_passes_the_answer_to_a_half_closed_client(tmp_path: Path) -> None:
    """nginx does not: to it such a client has left."""
    async with running(0.5, *events([5, 6])) as gateway, proxied("haproxy", gateway, tmp_path, seconds=60) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port)
        body = json.dumps(BODY).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


@pytest.mark.parametrize(("name", "seconds"), [("haproxy", 50), ("nginx", 60)])
async def test_the_defaults_of_both_sides_go_together(name: str, seconds: int, tmp_path: Path) -> None:
    """With the times that Debian's HAProxy and nginx have of themselves."""
    async with (
        running(seconds + 5.0, *events([5, 6])) as gateway,
        proxied(name, gateway, tmp_path, seconds) as http,
    ):
        response = await http.post("/v1/completions", json=BODY | {"stream": True})
        assert response.status_code == 200
        assert response.text.endswith("data: [DONE]\n\n")
