"""A real Prometheus beside the real services: every panel draws something, every rule is evaluated."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import yaml

from deploy.checks.tools import ROOT, located
from tests.deploy import queries
from tests.gateway.conftest import free_port

LONG_PROMPT = "The lighthouse keeper wrote down what he saw on the water. " * 40


class Live:
    """The services, and the Prometheus that scrapes them."""

    def __init__(self, gateway: str, prometheus: str) -> None:
        self._gateway = gateway
        self._prometheus = prometheus

    def answers(self) -> bool:
        return httpx.get(f"{self._gateway}/ready").status_code == 200

    def scrapes(self) -> bool:
        return sum(float(sample["value"][1]) for sample in self.query('up{job=~"structkv-.*"}')) == 3

    def ask(self, prompt: str, **fields: object) -> int:
        body = {"model": "smollm2-135m-instruct", "prompt": prompt, "max_tokens": 8} | fields
        return httpx.post(f"{self._gateway}/v1/completions", json=body, timeout=300).status_code

    def query(self, text: str) -> list[dict[str, list[str]]]:
        reply = httpx.get(f"{self._prometheus}/api/v1/query", params={"query": text}).json()
        assert reply["status"] == "success", reply
        return list(reply["data"]["result"])

    def rules(self) -> list[dict[str, str]]:
        groups = httpx.get(f"{self._prometheus}/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    port, metrics_port, prometheus_port = free_port(), free_port(), free_port()
    targets = {"gateway": port, "prefill": metrics_port, "decode": metrics_port + 1}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(targets)))
    services = [sys.executable, "-m", "services.cli", "up", "--port", str(port), "--transport", "redis"]
    commands = [
        [*services, "--metrics-port", str(metrics_port)],
        [
            *(located("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{prometheus_port}", "--log.level=warn"),
        ],
    ]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += (subprocess.Popen(command, cwd=ROOT, env=os.environ) for command in commands)
        live = Live(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{prometheus_port}")
        until(live.answers)
        until(live.scrapes)
        for _ in range(3):  # the second finds the first one's skeleton in the store
            assert live.ask(LONG_PROMPT) == 200
            time.sleep(3)
        assert live.ask("Hello", max_tokens=-1) == 400
        time.sleep(5)
        yield live
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def configuration(ports: dict[str, int]) -> dict[str, object]:
    """Return the deployed configuration with addresses of this machine, and less patience."""
    config = yaml.safe_load((queries.OBSERVABILITY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(queries.RULES)]
    scrapes = [scrape for scrape in config["scrape_configs"] if "dns_sd_configs" in scrape]
    for scrape in scrapes:
        [discovery] = scrape.pop("dns_sd_configs")
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{ports[discovery['names'][0]]}"]}]
    return config | {"scrape_configs": scrapes}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("panel", queries.panels(), ids=lambda panel: panel["title"])
def test_panels_draw_something(live: Live, panel: dict[str, list[dict[str, str]]]) -> None:
    for target in panel.get("targets", []):
        text = queries.filled_in(target["expr"].replace("$__rate_interval", "30s"))
        assert live.query(text), text


def test_rules_are_evaluated(live: Live) -> None:
    rules = live.rules()
    assert len(rules) == len(queries.rules())
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_nothing_alarms_where_nothing_is_wrong(live: Live) -> None:
    assert [rule["name"] for rule in live.rules() if rule.get("state") == "firing"] == []


def until(holds: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.HTTPError, KeyError):
            if holds():
                return
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.5)
