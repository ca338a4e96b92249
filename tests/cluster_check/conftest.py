"""Namespaces in the cluster, the images, and a client; whatever was made is removed in the end."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_check.client import Client
from tests.cluster_check.cluster import Namespace
from tests.cluster_check.images import build

# What brings an image to the cluster's nodes, where they do not share the engine's.
LOAD = shlex.split(os.environ.get("LOAD", "true"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def images() -> None:
    for image in build():
        subprocess.run([*LOAD, image], check=True)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """Return an empty namespace with its secrets."""
    made = Namespace(tmp_path_factory.mktemp("tree") / "deploy")
    print(f"\n  namespace {made.name}", flush=True)
    made.create()
    yield made
    made.delete()


@pytest.fixture(scope="module")
def client(images: None, namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = Namespace(tmp_path_factory.mktemp("client") / "deploy")
    home.create()
    client = Client(home, namespace)
    client.start()
    yield client
    home.delete()
