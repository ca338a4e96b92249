"""The gateway as a process: what it loads, how it starts, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import free_port

RUN = """
import sys
from services.gateway.main import run
from services.gateway.settings import GatewaySettings
nobody = "127.0.0.1:1"
run(GatewaySettings(model=sys.argv[1], port=int(sys.argv[2]), decode_workers=nobody, prefill_workers=nobody))
"""


def start(model: str, port: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", RUN, model, str(port)], stderr=subprocess.PIPE, text=True)


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
    port = free_port()
    process = start("smollm2-135m-instruct", port)
    url = f"http://127.0.0.1:{port}/health"
    deadline = time.monotonic() + 60
    while not _answers(url):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signum)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert all(json.loads(line) for line in log.splitlines())


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
