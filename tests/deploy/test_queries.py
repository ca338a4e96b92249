"""Dashboards, rules and autoscalers ask for what there is: metrics and labels of docs/metrics.md."""

import re
from collections.abc import Iterator

import pytest
import yaml

from tests.deploy import queries
from tests.deploy.manifests import ROOT, Manifests

# What a scrape adds to every series, and Prometheus' own.
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
OF_ANY_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "up"}


def documented() -> Iterator[tuple[str, set[str]]]:
    """Yield the series of each metric in the table, with their labels."""
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if not line.startswith("| `structkv_"):
            continue
        name, kind, _, labels, _ = (cell.strip() for cell in line.strip("|").split("|"))
        name = name.strip("`")
        own = set(re.findall(r"`(\w+)`", labels))
        if kind == "histogram":
            yield f"{name}_bucket", own | {"le"}
            yield f"{name}_sum", own
            yield f"{name}_count", own
        else:
            yield name, own


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, labels in documented():
        found[name] = found.get(name, set()) | labels
    assert len(found) > 40
    found |= {name: set() for name in OF_ANY_PROCESS}
    found |= {rule["record"]: {"namespace"} for rule in queries.rules() if "record" in rule}
    return found


ALL = list(queries.queries())


@pytest.mark.parametrize("query", ALL, ids=[query.place for query in ALL])
def test_metrics_and_their_labels_exist(query: queries.Query, metrics: dict[str, set[str]]) -> None:
    selected = list(queries.selections(query.text))
    assert selected
    for selection in selected:
        assert selection.metric in metrics
        assert selection.labels <= metrics[selection.metric] | TARGET_LABELS


def test_an_invented_metric_is_noticed(metrics: dict[str, set[str]]) -> None:
    [selection] = queries.selections("sum by (codec) (rate(structkv_invented_total[5m]))")
    assert selection == ("structkv_invented_total", {"codec"})
    assert selection.metric not in metrics


def test_counters_are_read_as_rates() -> None:
    for query in ALL:
        for name in re.findall(r"structkv_\w+_(?:total|bucket|sum|count)\b", query.text):
            if not name.startswith(("structkv_kv_blocks_total",)):
                assert re.search(rf"(?:rate|increase)\({name}\b", query.text), query


@pytest.mark.parametrize("panel", queries.panels(), ids=lambda panel: panel["title"])
def test_panels_can_be_drawn(panel: dict[str, object]) -> None:
    if panel["type"] == "row":
        return
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        grouped = {
            label for selection in queries.selections(queries.filled_in(target["expr"])) for label in selection.labels
        }
        assert queries.templated_labels(target["legendFormat"]) <= grouped | TARGET_LABELS


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in queries.panels():
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in queries.panels()}) == len(queries.panels())


def test_alerts_say_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    runbook = (ROOT / "docs" / "alerts.md").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", runbook, re.MULTILINE)}
    alerts = [rule for rule in queries.rules() if "alert" in rule]
    for alert in alerts:
        assert alert["for"], alert["alert"]
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert file == "docs/alerts.md"
        assert anchor == alert["alert"].lower()
    assert anchors == {alert["alert"].lower() for alert in alerts}


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    cases = yaml.safe_load((queries.OBSERVABILITY / "prometheus" / "tests" / "structkv.yml").read_text())["tests"]
    firing = {check["alertname"] for case in cases for check in case.get("alert_rule_test", []) if check["exp_alerts"]}
    assert firing == {rule["alert"] for rule in queries.rules() if "alert" in rule}


def test_the_operator_s_rules_are_the_same(rendered: dict[str, Manifests]) -> None:
    written = rendered["gpu-redis-ha"].get("PrometheusRule", "structkv")["spec"]
    assert written == yaml.safe_load(queries.RULES.read_text()), "`make deploy-rules` writes them again"


def test_autoscalers_ask_for_what_the_adapter_offers(rendered: dict[str, Manifests]) -> None:
    offered = {
        selection.metric
        for rule in yaml.safe_load(queries.ADAPTER.read_text())["rules"]
        for selection in queries.selections(rule["seriesQuery"])
    }
    asked = {
        metric["pods"]["metric"]["name"]
        for autoscaler in rendered["gpu-redis-ha"].of("HorizontalPodAutoscaler")
        for metric in autoscaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert asked == offered == {"structkv_prefill_waiting_tokens", "structkv_kv_cache_usage_ratio"}


def test_both_ways_to_scale_have_the_same_targets(rendered: dict[str, Manifests]) -> None:
    hpa = {
        autoscaler["metadata"]["name"]: autoscaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
        for autoscaler in rendered["gpu-redis-ha"].of("HorizontalPodAutoscaler")
        if autoscaler["spec"]["metrics"][0]["type"] == "Pods"
    }
    keda = {
        scaled["metadata"]["name"]: scaled["spec"]["triggers"][0]["metadata"]["threshold"]
        for scaled in rendered["gpu with monitoring and keda"].of("ScaledObject")
        if scaled["spec"]["triggers"][0]["type"] == "prometheus"
    }
    assert hpa == {"prefill": "32000", "decode": "700m"}
    assert keda == {"prefill": "32000", "decode": "0.7"}


def test_compose_scrapes_the_jobs_that_are_asked_for() -> None:
    config = yaml.safe_load((queries.OBSERVABILITY / "prometheus" / "prometheus.yml").read_text())
    jobs = {scrape["job_name"] for scrape in config["scrape_configs"]}
    assert {"structkv-gateway", "structkv-prefill", "structkv-decode"} <= jobs


def test_monitors_name_the_same_jobs(rendered: dict[str, Manifests]) -> None:
    manifests = rendered["gpu-redis-ha"]
    endpoints = [
        *(endpoint for monitor in manifests.of("PodMonitor") for endpoint in monitor["spec"]["podMetricsEndpoints"]),
        *(endpoint for monitor in manifests.of("ServiceMonitor") for endpoint in monitor["spec"]["endpoints"]),
    ]
    jobs = {rule["replacement"] for endpoint in endpoints for rule in endpoint["relabelings"]}
    assert jobs == {"structkv-gateway", "structkv-prefill", "structkv-decode"}
