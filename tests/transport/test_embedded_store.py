"""The store of one machine's own: the workers can use it, and nobody can use it for anything else."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from common.model.decoder import DecoderModel
from common.skeleton.spec import SkeletonSpec
from common.transport.redis_store import RedisStore
from services import embedded_store
from tests.conftest import StartWorkers
from tests.gateway.conftest import free_port
from tests.transport.test_contract import PROMPT, SKELETON

PASSWORD = "correct horse: battery/staple@"
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "services.cli", "store", "--memory-mib", "64"]


def until_up(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    with Redis.from_url(url) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None
            try:
                assert client.ping()
                return
            except RedisError:
                time.sleep(0.05)
    pytest.fail("the store does not answer")


@dataclass
class Store:
    """A running store, its URL, and the folder that it was started in."""

    process: "subprocess.Popen[str]"
    url: str
    folder: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    port, folder = free_port(), tmp_path_factory.mktemp("store")
    environment = os.environ | {embedded_store.PASSWORD_VARIABLE: PASSWORD, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*COMMAND, "--port", str(port)], env=environment, cwd=folder, text=True)
    try:
        url = embedded_store.url(port, PASSWORD)
        until_up(url, process)
        yield Store(process, url, folder)
    finally:
        process.kill()
        process.wait()


async def test_the_workers_have_all_that_they_need(
    running: Store, start_workers: StartWorkers, tiny: Callable[[str], DecoderModel]
) -> None:
    store = RedisStore.open(running.url, ttl_seconds=60, max_bytes=1 << 20)
    workers = await start_workers(tiny("llama"), store=store)
    skeleton = SkeletonSpec.of(tiny("llama").spec, PROMPT, SKELETON)
    request = workers.request(PROMPT, 3, SKELETON)
    await workers.generate(request)
    assert (await workers.generate(request))[0].skeleton.cached_tokens == len(PROMPT)
    assert await store.reserve(skeleton, "another", 1 << 20), "all else had to make way"
    await store.discard(skeleton, "another", 1 << 20)
    await store.forget(skeleton)
    assert await store.find(skeleton) is None
    await store.close()


def test_without_the_password_nobody_gets_in(running: Store) -> None:
    port = int(running.url.rpartition(":")[2])
    for password in (None, "wrong"):
        with Redis(port=port, password=password) as client, pytest.raises(AuthenticationError):
            client.get("structkv:reserved")


REFUSED = (
    *("CONFIG SET dir /tmp", "CONFIG GET *", "SAVE", "BGSAVE", "BGREWRITEAOF", "MODULE LIST", "DEBUG JMAP"),
    *("SCRIPT FLUSH", "FUNCTION LIST", "REPLICAOF 127.0.0.1 1", "SHUTDOWN", "ACL LIST", "KEYS *", "FLUSHALL"),
    *("MONITOR", "CLIENT LIST", "GETRANGE other 0 1", "SET other 1"),
)


def test_with_the_password_there_is_nothing_else_to_do(running: Store) -> None:
    with Redis.from_url(running.url) as client:
        for command in REFUSED:
            with pytest.raises(ResponseError, match=r"permission|not allowed"):
                client.execute_command(*command.split())
        for name in ("FLUSHALL", "SAVE", "CONFIG"):
            with pytest.raises(ResponseError):
                client.eval(f"return redis.call('{name}')", 0)
    assert list(running.folder.iterdir()) == []
    assert not Path(os.readlink(f"/proc/{running.process.pid}/cwd")).exists()


def test_the_password_is_in_no_process_list(running: Store) -> None:
    server = psutil.Process(running.process.pid)
    assert "valkey" in server.name()
    assert PASSWORD not in " ".join(server.cmdline())
    assert PASSWORD not in str(server.environ())


def test_a_password_is_made_where_none_is_given() -> None:
    environment = {name: value for name, value in os.environ.items() if name != embedded_store.PASSWORD_VARIABLE}
    process = subprocess.Popen(
        [*COMMAND, "--port", str(free_port())], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        variable, _, url = process.stdout.readline().strip().partition("=")
        assert variable == "export REDIS_URL"
        until_up(url, process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("password", ["", "short"])
def test_a_weak_password_is_refused(password: str) -> None:
    environment = os.environ | {embedded_store.PASSWORD_VARIABLE: password}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert embedded_store.PASSWORD_VARIABLE in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = os.environ | {embedded_store.PASSWORD_VARIABLE: PASSWORD}
        done = subprocess.run(
            [*COMMAND, "--port", str(port)], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: address already in use" in done.stderr
