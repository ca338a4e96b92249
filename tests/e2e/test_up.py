"""`structkv up` as its user meets it: restarts, stopping, and what it says when it cannot start."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.conftest import MODEL, STRUCTKV, Up, free_ports_in_a_row, start


def ask(up: Up) -> str:
    answer = up.client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    return answer.choices[0].text


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Return a service that these tests may hurt; the last of them stops it."""
    running = start(tmp_path_factory.mktemp("own") / "output", "--prefill-workers", "2")
    try:
        running.wait_until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def test_it_says_how_to_use_it(own: Up) -> None:
    assert own.says(f"curl {own.url}/v1/chat/completions")
    assert MODEL in own.output.read_text()
    assert [kind for kind, _ in own.children()] == ["decode", "gateway", "prefill", "prefill"]


@pytest.mark.parametrize("kind", ["decode", "gateway"])
def test_what_dies_is_started_again(kind: str, own: Up) -> None:
    expected = ask(own)
    victim = dict(own.children())[kind]
    victim.kill()
    wait_for(lambda: answers(own, expected) and dict(own.children())[kind] != victim)
    assert re.search(f"{kind}.* ended .killed by SIGKILL., starting it again", own.output.read_text())


def answers(up: Up, expected: str) -> bool:
    """Ask; a refusal while the worker is away is no answer, but a wrong answer is wrong."""
    try:
        assert ask(up) == expected
    except (openai.APIConnectionError, openai.InternalServerError):
        return False
    return True


def test_ctrl_c_stops_everything(own: Up) -> None:
    children = [child for _, child in own.children()]
    assert len(children) == 4
    assert own.stop(signal.SIGINT) == 0
    assert not psutil.wait_procs(children, timeout=0)[1]


def test_a_killed_supervisor_leaves_nobody_behind(tmp_path: Path) -> None:
    running = start(tmp_path / "output")
    wait_for(lambda: len(running.children()) == 2)
    children = [child for _, child in running.children()]
    running.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    done = run("up", "--model", str(missing))
    assert done.returncode == 1
    assert str(missing) in done.stderr


def test_a_worker_that_cannot_start_ends_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    done = run("up", "--model", str(tmp_path))
    assert done.returncode == 1
    assert "could not start" in done.stderr
    assert f"cannot load {tmp_path}" in done.stderr


@pytest.mark.parametrize("kind", ["gateway", "prefill", "decode"])
def test_a_bad_setting_stops_the_start_with_its_name(kind: str) -> None:
    done = run(kind, "--port", "70000")
    assert done.returncode == 2
    errors = [json.loads(line) for line in done.stderr.splitlines()]
    assert {(error["level"], error["service"]) for error in errors} == {("error", kind)}
    assert any("port (--port, STRUCTKV_PORT)" in error["message"] for error in errors)


@pytest.mark.parametrize("arguments", [("--nonsense", "1"), ("nonsense",), ("--model", "/nowhere", "--port", "TAKEN")])
@pytest.mark.parametrize("kind", ["gateway", "prefill", "decode"])
def test_what_stops_the_start_is_a_line_of_the_log(kind: str, arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        workers = ("--prefill-workers", "a:1", "--decode-workers", "a:1") if kind == "gateway" else ()
        done = run(kind, *workers, *(address.rpartition(":")[2] if part == "TAKEN" else part for part in arguments))
    assert done.returncode in {1, 2}
    (error,) = (json.loads(line) for line in done.stderr.splitlines())
    expected = f"cannot listen on {address}: address already in use" if "TAKEN" in arguments else "nonsense"
    assert expected in error["message"]


@pytest.mark.parametrize("which", ["--port", "--metrics-port"])
def test_a_taken_port_is_noticed_before_anything_is_loaded(which: str) -> None:
    other = "--metrics-port" if which == "--port" else "--port"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("up", which, str(port), other, str(free_ports_in_a_row(2)), "--model", "/nowhere.gguf")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in done.stderr
    assert "nowhere" not in done.stderr


def test_a_port_that_is_asked_for_twice_is_named() -> None:
    port = free_ports_in_a_row(2)
    done = run("up", "--port", str(port + 1), "--metrics-port", str(port), "--model", "/nowhere.gguf")
    assert done.returncode == 1
    assert f"port {port + 1} is asked for twice" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STRUCTKV, *arguments], capture_output=True, text=True, timeout=120, check=False)


def wait_for(condition: Callable[[], bool], timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_store_of_its_own_keeps_skeletons(tmp_path: Path) -> None:
    up = start(tmp_path / "output", "--transport", "redis")
    try:
        up.wait_until_ready()
        prompt = "The lighthouse stood on the northern cliff. " * 60 + "The lighthouse stood on"
        first, again = (
            up.client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0) for _ in range(2)
        )
        assert again.choices[0].text == first.choices[0].text
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens
        children = psutil.Process(up.process.pid).children()
        worker = next(child for child in children if "decode" in child.cmdline())
        password = worker.environ()["REDIS_URL"].removeprefix("redis://:").partition("@")[0]
        assert len(password) == 64
        seen = [up.output.read_text(), *(" ".join(child.cmdline()) for child in children)]
        assert not any(password in text for text in seen)
    finally:
        assert up.stop() == 0
