"""docker-compose.yml as an operator without a GPU runs it, with an environment file made from .env.example."""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
FILES = (COMPOSE_FILE, ROOT / "docker-compose.cpu.yml")
REQUIRED = tuple(sorted(set(re.findall(r"\$\{(\w+):\?", COMPOSE_FILE.read_text()))))
SECRETS = ("STRUCTKV_API_KEYS", "REDIS_PASSWORD", "GRAFANA_PASSWORD")
_READ_METRICS = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/metrics').read().decode())"


def settings() -> dict[str, str]:
    """Return what .env.example sets, the secrets filled in."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    entries = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return entries | {name: secrets.token_hex(16) for name in SECRETS}


def engine(*arguments: str, check: bool = True, environment: dict[str, str] | None = None) -> str:
    """Run docker, say so, and return what it printed on both its streams."""
    print(f"  $ docker {' '.join(_telling(arguments))}", flush=True)
    command = ["docker", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    )
    return done.stdout


def _telling(arguments: Sequence[str]) -> Iterator[str]:
    """Leave out what every call of compose has in common, and programs."""
    skipped = False
    for argument in arguments:
        if not skipped and argument not in ("--env-file", "--project-name", "--file"):
            yield argument if len(argument) < 60 else "..."
        skipped = argument in ("--env-file", "--project-name", "--file")


@dataclass
class Stack:
    """A project of its own, beside whatever else runs on the engine.

    Attributes:
        folder: for the environment file.
        port: where the gateway is published.
        settings: what the environment file says.
    """

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=settings)
    project: str = field(default_factory=lambda: f"structkv-test-{secrets.token_hex(3)}")

    def compose(self, *arguments: str, check: bool = True, files: Sequence[Path] = FILES) -> str:
        """Run docker compose. The environment file alone counts, and wheels from the caller's environment."""
        env_file = self.folder / "env"
        own = {"STRUCTKV_PORT": str(self.port), "STRUCTKV_THREADS": "1"}
        env_file.write_text("".join(f"{name}={value}\n" for name, value in {**self.settings, **own}.items()))
        environment = {name: value for name, value in os.environ.items() if name not in self.settings | own}
        chosen = [part for file in files for part in ("--file", str(file))]
        return engine(
            *("compose", "--env-file", str(env_file), "--project-name", self.project, *chosen, *arguments),
            check=check,
            environment=environment,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.AsyncClient:
        """Return a client with the key; it waits as long as two busy cores need."""
        key = self.settings["STRUCTKV_API_KEYS"]
        return httpx.AsyncClient(base_url=self.url, timeout=300, headers={"Authorization": f"Bearer {key}"})

    def containers(self, service: str) -> list[str]:
        """Return the names of a service's running containers."""
        return self.compose("ps", "--format", "{{.Name}}", service).split()

    def states(self) -> dict[str, dict[str, str]]:
        """Return what `docker compose ps` says of every container, by its service; ended ones included."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {entry["Service"]: entry for entry in map(json.loads, lines)}

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-log-prefix", service)


def inspect(name: str) -> dict:
    """Return everything that the engine knows of a container or an image."""
    return json.loads(engine("inspect", name))[0]


def metric(container: str, name: str) -> float:
    """Return a worker's metric, without labels, as Prometheus would scrape it from inside the network."""
    text = engine("exec", container, "python", "-c", _READ_METRICS)
    (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(value)


def wait_for(condition, what: str, timeout_seconds: float = 300) -> None:
    """Wait for something that nothing announces; fail if it does not come."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s for {what}"
        time.sleep(2)
