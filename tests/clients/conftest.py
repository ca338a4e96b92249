"""The real service, and a second gateway to its workers that takes one request at a time from those with a key."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Up
from tests.e2e.processes import Process

KEY = "a-key-for-the-tests-of-clients"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.timeout(900))  # the first run installs the clients


@pytest.fixture(scope="session")
def guarded_url(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(KEY)
    addresses = {kind: f"127.0.0.1:{_port(process)}" for kind, process in up.children()}
    flags = ["--decode-workers", addresses["decode"], "--prefill-workers", addresses["prefill"]]
    flags += ["--max-requests", "1", "--api-keys-file", str(folder / "keys")]
    gateway = Process("gateway", flags, folder / "log")
    gateway.start()
    try:
        gateway.wait_until_serving()
        yield f"http://{gateway.address}/v1"
        assert gateway.stop() == 0
    finally:
        gateway.kill()


def _port(worker: psutil.Process) -> str:
    command = worker.cmdline()
    return command[command.index("--port") + 1]
