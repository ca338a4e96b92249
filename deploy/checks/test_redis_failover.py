"""The store of `redis-ha`, started by its own scripts and configuration: three servers, three sentinels, the proxy.

What differs from the pods: the servers call each other by loopback addresses, ports are free ones, and the proxy's
names are answered by a DNS server of the test's.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import redis

from deploy.checks.names import dns_server
from tests.gateway.conftest import free_port

SOURCE = Path("deploy/k8s/components/redis-ha")
PASSWORD = "0123456789abcdef0123456789abcdef"
HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
DOMAIN = "structkv.svc.cluster.local"
NAMES = {f"redis-{number}.redis-nodes.{DOMAIN}": host for number, host in enumerate(HOSTS)}


class Store:
    """The processes of the three pods, and the proxy's address."""

    def __init__(self, folder: Path, dns_port: int) -> None:
        self._folder = folder
        self._dns_port = dns_port
        self._ports = {"26379": free_port(), "6379": free_port(), "8404": free_port()}
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self.proxy_port = free_port()

    def start(self, host: str) -> None:
        """Start a pod: a server and its sentinel."""
        folder = self._folder / host
        if not folder.exists():
            self._copy(folder)
            for name in ("redis.conf", "sentinel.conf"):
                with (folder / name).open("a") as file:
                    file.write(f"bind {host}\n")
        for kind in ("redis", "sentinel"):
            data = folder / kind
            data.mkdir(exist_ok=True)
            self._spawn(
                (host, kind),
                ["sh", str(folder / f"start-{kind}.sh")],
                self._environment(host) | {"DATA": str(data)},
            )

    def start_proxy(self) -> None:
        folder = self._folder / "proxy"
        self._copy(folder)
        config = folder / "haproxy.cfg"
        text = config.read_text().replace(f"bind :{self._ports['6379']}", f"bind 127.0.0.1:{self.proxy_port}")
        config.write_text(text.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{self._dns_port}"))
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text(
            f"nameserver 127.0.0.1\nsearch {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5\n"
        )
        environment = os.environ | {"REDIS_PASSWORD": PASSWORD, "RESOLV_CONF": str(resolv_conf)}
        self._spawn(("proxy", "proxy"), ["sh", str(folder / "start-proxy.sh")], environment)

    def proxy_is(self, question: str) -> bool:
        """Ask the proxy as its probes do: `health` or `ready`."""
        return httpx.get(f"http://127.0.0.1:{self._ports['8404']}/{question}").status_code == 200

    def kill(self, host: str) -> None:
        """End a pod as the loss of its node does."""
        for kind in ("redis", "sentinel"):
            self._end(self._processes.pop((host, kind)))

    def run(self, script: str, host: str) -> bool:
        """Run a script in a pod; tell whether it was content."""
        path = self._folder / host / script
        return subprocess.run(["sh", str(path)], env=self._environment(host), check=False, timeout=60).returncode == 0

    @staticmethod
    def _environment(host: str) -> dict[str, str]:
        return os.environ | {"ME": host, "NODES": " ".join(HOSTS), "REDIS_PASSWORD": PASSWORD}

    def client(self) -> redis.Redis:
        """Return a client as workers have it: of one URL."""
        return redis.Redis.from_url(f"redis://:{PASSWORD}@127.0.0.1:{self.proxy_port}/0", socket_timeout=5)

    def primary(self) -> str:
        """Return who says that it is the primary; empty unless it is exactly one."""
        saying = [host for host in HOSTS if self._role(host) == "master"]
        return saying[0] if len(saying) == 1 else ""

    def replicas(self) -> int:
        """Return how many replicas the primary has that are up to date."""
        info = self._info(self.primary())
        return sum(info.get(f"slave{number}", {}).get("state") == "online" for number in range(len(HOSTS)))

    def is_known(self, host: str) -> bool:
        """Tell whether a pod's sentinel knows the others, and both replicas."""
        state = redis.Redis(host, self._ports["26379"], socket_timeout=2).sentinel_master("structkv")
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 2

    def follow(self, host: str, other: str) -> None:
        """Make a server another one's replica."""
        redis.Redis(host, self._ports["6379"], password=PASSWORD).slaveof(other, self._ports["6379"])

    def close(self) -> None:
        for process in self._processes.values():
            self._end(process)

    def _role(self, host: str) -> str:
        with suppress(redis.RedisError):
            return str(self._info(host)["role"])
        return ""

    def _info(self, host: str) -> dict[str, object]:
        return redis.Redis(host, self._ports["6379"], password=PASSWORD, socket_timeout=2).info("replication")

    def _copy(self, folder: Path) -> None:
        shutil.copytree(SOURCE, folder)
        for file in folder.iterdir():
            text = file.read_text()
            file.write_text(re.sub(r"\b(26379|6379|8404)\b", lambda found: str(self._ports[found[1]]), text))

    def _spawn(self, name: tuple[str, str], command: list[str], environment: dict[str, str]) -> None:
        self._processes[name] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError, KeyError):
            if holds():
                return
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture
def names() -> dict[str, str]:
    return dict(NAMES)


@pytest.fixture
def store(tmp_path: Path, names: dict[str, str]) -> Iterator[Store]:
    with dns_server(names) as dns_port:
        yield from started(Store(tmp_path, dns_port))


def started(store: Store) -> Iterator[Store]:
    try:
        for host in HOSTS:
            store.start(host)
        store.start_proxy()
        until(lambda: store.primary() == HOSTS[0] and store.replicas() == 2)
        until(lambda: all(store.is_known(host) for host in HOSTS))
        until(lambda: store.client().ping())
        yield store
    finally:
        store.close()


def test_the_loss_of_the_primary_costs_seconds_and_no_skeleton(store: Store) -> None:
    client = store.client()
    client.set("kept", "value")
    assert client.wait(2, 5000) == 2
    store.kill(HOSTS[0])
    until(lambda: store.client().set("new", "value"))
    assert store.client().get("kept") == b"value"
    elected = store.primary()
    assert elected in HOSTS[1:]

    store.start(HOSTS[0])
    until(lambda: store.replicas() == 2)
    assert store.primary() == elected, "it has come back as a replica"
    assert store.client().get("new") == b"value"


def test_a_primary_that_is_to_end_hands_over_before(store: Store) -> None:
    store.client().set("kept", "value")
    assert store.run("step-down.sh", HOSTS[0])
    until(lambda: store.primary() in HOSTS[1:])
    store.kill(HOSTS[0])
    until(lambda: store.client().get("kept") == b"value")


def test_a_replica_that_ends_hands_nothing_over(store: Store) -> None:
    assert store.run("step-down.sh", HOSTS[1])
    assert store.primary() == HOSTS[0]


def test_a_replica_of_the_wrong_server_is_noticed(store: Store) -> None:
    assert all(store.run("check-role.sh", host) for host in HOSTS)
    store.follow(HOSTS[2], HOSTS[1])
    assert not store.run("check-role.sh", HOSTS[2])


def test_the_proxy_is_ready_only_with_a_primary(store: Store) -> None:
    until(lambda: store.proxy_is("ready"))
    for host in HOSTS:
        store.kill(host)
    until(lambda: not store.proxy_is("ready"))
    assert store.proxy_is("health"), "it lives, and must not be killed for it"


def test_the_proxy_follows_names_that_go_and_come(store: Store, names: dict[str, str]) -> None:
    client = store.client()
    client.set("kept", "value")
    names.clear()
    until(lambda: not store.proxy_is("ready"))
    names.update(NAMES)
    until(lambda: store.client().get("kept") == b"value")


def test_nobody_comes_in_without_the_password(store: Store) -> None:
    with pytest.raises(redis.AuthenticationError):
        redis.Redis("127.0.0.1", store.proxy_port).get("kept")
