"""`structkv probe`, as a container's health check runs it."""

import asyncio
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.certificates import Authority, PemFiles
from tests.gateway.conftest import ScriptedDecode, free_port, grpc_worker
from tests.gateway.workers.test_silent_workers import NOT_SERVING, worker_with_health


async def probe(target: str, files: PemFiles | None = None) -> tuple[int | None, str]:
    variables = (
        {} if files is None else {f"STRUCTKV_{name.upper()}": str(path) for name, path in files.settings.items()}
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "probe", target),
        env=os.environ | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_in_plain_text() -> None:
    async with grpc_worker() as target:
        assert await probe(target) == (0, "")
    code, said = await probe(target)
    assert code == 1
    assert said.startswith(f"structkv: {target} gives no health: UNAVAILABLE, ")
    assert "refused" in said


async def test_a_worker_that_does_not_serve_says_so() -> None:
    async with worker_with_health(ScriptedDecode()) as (target, status):
        await status.say(NOT_SERVING)
        assert await probe(target) == (1, f"structkv: {target} says NOT_SERVING\n")


async def test_what_is_no_address_is_named() -> None:
    for target in ("http://[::1", "nowhere", "ftp://127.0.0.1/"):
        code, said = await probe(target)
        assert code == 1
        assert target in said
        assert "Traceback" not in said


async def test_over_tls(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    async with grpc_worker(tls=files.tls()) as target:
        assert (await probe(target, files))[0] == 0
        assert (await probe(target))[0] == 1


async def test_a_bad_certificate_is_named(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    files.ca.unlink()
    code, said = await probe("127.0.0.1:1", files)
    assert code == 2
    assert "tls_ca (--tls-ca, STRUCTKV_TLS_CA): cannot read" in said


class Answers(BaseHTTPRequestHandler):
    """Is well at /health, and at nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b"no decode worker")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def test_a_url() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert await probe(f"{url}/health") == (0, "")
        assert await probe(f"{url}/ready") == (1, f"structkv: {url}/ready answers 503: no decode worker\n")
        server.shutdown()
    code, said = await probe(f"http://127.0.0.1:{free_port()}/health")
    assert code == 1
    assert "/health gives no answer: " in said


async def test_a_url_whose_certificate_is_for_another_name(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("api.example.org")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever).start()
        assert (await probe(f"https://127.0.0.1:{server.server_port}/health"))[0] == 0
        server.shutdown()
