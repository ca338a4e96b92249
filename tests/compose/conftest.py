"""The images, and the service that runs from them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import Stack
from tests.gateway.conftest import free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.compose)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a project of which nothing runs yet; whatever runs of it in the end is removed."""
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"these tests need a container engine with compose and buildx: {found.stderr}"
    stack = Stack(tmp_path_factory.mktemp("compose"), free_port())
    print(f"\nproject {stack.project}, gateway at {stack.url}", flush=True)
    yield stack
    stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


@pytest.fixture(scope="session")
def built(stack: Stack) -> Stack:
    """Return the project with its images built from this checkout."""
    stack.compose("build")
    return stack


@pytest.fixture(scope="session")
def running(built: Stack) -> Stack:
    """Return the project with one of each, all healthy."""
    built.compose("up", "--detach", "--wait")
    return built
