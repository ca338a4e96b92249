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

KEY = "key-of-anna-0123456789"


def start(model: str, port: int, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUN, model, str(port)], stderr=subprocess.PIPE, text=True, env=os.environ | variables
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
