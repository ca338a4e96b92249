"""The gateway as a process: what it loads, how it starts, how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from common.settings import DEFAULT_MODEL
from tests.gateway.conftest import ScriptedDecode, events, free_port, grpc_worker, until

RUN = """
import json, sys
from services.gateway.main import run
from services.gateway.settings import GatewaySettings
run(GatewaySettings(**json.loads(sys.argv[1])))
"""

KEY = "key-of-anna-0123456789"


def start(
    model: str, port: int, settings: dict[str, object] | None = None, **variables: str
) -> "subprocess.Popen[str]":
    nobody = {"decode_workers": "127.0.0.1:1", "prefill_workers": "127.0.0.1:1"}
    arguments = json.dumps({"model": model, "port": port} | nobody | (settings or {}))
    return subprocess.Popen(
        [sys.executable, "-c", RUN, arguments], stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )


def test_neither_torch_nor_transformers_is_loaded() -> None:
    code = (
        "import sys, services.gateway.main; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bad_model_stops_the_start(tmp_path: Path) -> None:
    process = start(str(tmp_path), free_port())
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "config.json" in json.loads(log.splitlines()[-1])["message"]


def test_a_taken_port_stops_the_start() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = start("smollm2-135m-instruct", listener.getsockname()[1])
        _, log = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "address already in use" in log


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(signum: signal.Signals) -> None:
    assert log_of_a_run(signum)


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({}, None),
        ({"STRUCTKV_HOST": "0.0.0.0"}, "open to whoever reaches 0.0.0.0: set api_keys or api_keys_file"),
        ({"STRUCTKV_HOST": "0.0.0.0", "STRUCTKV_API_KEYS": KEY}, "API keys and prompts arrive in plain text"),
    ],
)
def test_it_warns_once_of_an_endpoint_that_others_reach(variables: dict[str, str], warning: str | None) -> None:
    log = log_of_a_run(signal.SIGTERM, **variables)
    warnings = [line["message"] for line in log if line["level"] == "warning"]
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]
    assert KEY not in str(log)


def log_of_a_run(signum: signal.Signals, **variables: str) -> list[dict]:
    """Start the gateway, end it by a signal; return its log."""
    port = free_port()
    process = start("smollm2-135m-instruct", port, **variables)
    url = f"http://127.0.0.1:{port}/health"
    deadline = time.monotonic() + 60
    while not _answers(url):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signum)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    return [json.loads(line) for line in log.splitlines()]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Running:
    """A gateway's process that answers, and the scripted worker behind it."""

    process: "subprocess.Popen[str]"
    http: httpx.AsyncClient
    decode: ScriptedDecode

    async def complete(self) -> httpx.Response:
        body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": True}
        return await self.http.post("/v1/completions", json=body)

    async def ready(self) -> dict[str, object]:
        return (await self.http.get("/ready")).json()

    async def is_busy(self) -> bool:
        return bool(self.decode.requests)

    async def is_draining(self) -> bool:
        return (await self.ready())["status"] == "draining"

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 10)


@asynccontextmanager
async def running(*script: object, **settings: object) -> AsyncIterator[Running]:
    decode, port = ScriptedDecode(list(script)), free_port()  # type: ignore[arg-type]
    async with (
        grpc_worker(decode) as decode_address,
        grpc_worker() as prefill_address,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        workers = {"decode_workers": decode_address, "prefill_workers": prefill_address}
        process = start(DEFAULT_MODEL, port, workers | settings)
        try:
            while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}/ready"):
                assert process.poll() is None
                await asyncio.sleep(0.1)
            yield Running(process, http, decode)
        finally:
            process.kill()
            process.communicate()


async def test_it_finishes_what_runs_and_refuses_what_is_new() -> None:
    let_go, (first, last) = asyncio.Event(), events([5, 6])
    async with running(first, let_go, last) as gateway:
        answer = asyncio.create_task(gateway.complete())
        await until(gateway.is_busy)
        gateway.process.send_signal(signal.SIGTERM)
        await until(gateway.is_draining)
        refused = await gateway.complete()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        let_go.set()
        assert (await answer).text.endswith("data: [DONE]\n\n")
        assert await gateway.exit_code() == 0


@pytest.mark.parametrize("patience", ["grace time", "second signal"])
async def test_what_is_broken_off_is_told(patience: str) -> None:
    """A request that has no token yet may be sent elsewhere; a stream ends with an error."""
    (first, _), grace_seconds = events([5, 6]), 0.2 if patience == "grace time" else 600
    async with running(first, asyncio.Event(), shutdown_grace_seconds=grace_seconds) as gateway:
        stream = asyncio.create_task(gateway.complete())
        await until(gateway.is_busy)
        gateway.decode.script = [asyncio.Event()]
        waiting = asyncio.create_task(gateway.complete())

        async def both_run() -> bool:
            return len(gateway.decode.requests) == 2

        await until(both_run)
        gateway.process.send_signal(signal.SIGTERM)
        if patience == "second signal":
            await until(gateway.is_draining)
            gateway.process.send_signal(signal.SIGTERM)
        *_, error, done, rest = (await stream).text.split("\n\n")
        assert '"code":"service_unavailable"' in error
        assert (done, rest) == ("data: [DONE]", "")
        refused = await waiting
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert await gateway.exit_code() == 0
        await asyncio.wait_for(gateway.decode.cancelled.wait(), 5)


async def test_a_load_balancer_gets_the_time_that_is_set_to_see_it() -> None:
    async with running(shutdown_delay_seconds=1) as gateway:
        stopped = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        await until(gateway.is_draining)
        assert await gateway.exit_code() == 0
        assert time.monotonic() - stopped >= 1


async def test_hundreds_find_room_while_it_is_busy() -> None:
    """Whoever finds none tries again after a second: for `/health` too long."""
    async with running() as gateway:
        gateway.process.send_signal(signal.SIGSTOP)
        address = (gateway.http.base_url.host, gateway.http.base_url.port)
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(address, timeout=0.5))
            gateway.process.send_signal(signal.SIGCONT)
            assert (await gateway.http.get("/health")).status_code == 200
