"""Rules, their tests, the configuration and the dashboard's queries by promtool."""

from pathlib import Path

import yaml

from deploy.checks.tools import run
from tests.deploy import queries

FOLDER = Path("deploy/observability/prometheus")


def test_rules_are_sound() -> None:
    done = run("promtool", "check", "rules", FOLDER / "rules" / "structkv.yml")
    assert done.code == 0, done.output


def test_alerts_fire_when_they_should() -> None:
    done = run("promtool", "test", "rules", FOLDER / "tests" / "structkv.yml")
    assert done.code == 0, done.output


def test_the_configuration_is_sound(tmp_path: Path) -> None:
    # In its container the rules are in /etc/prometheus.
    text = (queries.OBSERVABILITY / "prometheus" / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus", str(queries.OBSERVABILITY / "prometheus")))
    done = run("promtool", "check", "config", config)
    assert done.code == 0, done.output
    assert "1 rule files found" in done.output


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query_{number}", "expr": query.text} for number, query in enumerate(queries.queries())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = run("promtool", "check", "rules", path)
    assert done.code == 0, done.output


def test_a_bad_rule_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text("groups: [{name: bad, rules: [{record: x, expr: 'sum('}]}]\n")
    assert run("promtool", "check", "rules", path).code != 0
