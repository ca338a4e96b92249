"""Every PromQL query that is deployed, and what it asks for."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

from tests.deploy.manifests import KUBERNETES, ROOT

OBSERVABILITY = ROOT / "deploy" / "observability"
RULES = OBSERVABILITY / "prometheus" / "rules" / "structkv.yml"
DASHBOARD = OBSERVABILITY / "grafana" / "dashboards" / "structkv.json"
ADAPTER = KUBERNETES / "components" / "autoscaling-hpa" / "prometheus-adapter.yaml"
SCALED_OBJECTS = KUBERNETES / "components" / "autoscaling-keda" / "scaled-objects.yaml"

# What Grafana and prometheus-adapter fill in.
_FILLED_IN = {
    "$__rate_interval": "1m",
    "$namespace": ".*",
    "<<.Series>>": "structkv_prefill_waiting_tokens",
    "<<.LabelMatchers>>": 'namespace="structkv"',
}


class Query(NamedTuple):
    """Where a query stands, and the query."""

    place: str
    text: str


class Selection(NamedTuple):
    """A metric in a query, and the labels that it is asked by."""

    metric: str
    labels: frozenset[str]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def queries() -> Iterator[Query]:
    """Yield the queries of all rules, panels and autoscalers."""
    for rule in rules():
        yield Query(rule.get("alert") or rule["record"], rule["expr"])
    for panel in panels():
        for target in panel.get("targets", []):
            yield Query(f"panel {panel['title']}", filled_in(target["expr"]))
    for rule in yaml.safe_load(ADAPTER.read_text())["rules"]:
        yield Query("prometheus-adapter", rule["seriesQuery"])
        yield Query("prometheus-adapter", filled_in(rule["metricsQuery"]))
    for scaled in yaml.safe_load_all(SCALED_OBJECTS.read_text()):
        for trigger in scaled["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                yield Query(f"KEDA {scaled['metadata']['name']}", trigger["metadata"]["query"])


def filled_in(text: str) -> str:
    for variable, value in _FILLED_IN.items():
        text = text.replace(variable, value)
    return text


def selections(text: str) -> Iterator[Selection]:
    """Yield what a query selects; raise ValueError for what is no PromQL."""
    yield from _walk(promql.parse(text), frozenset())


def _walk(node: Any, grouped: frozenset[str]) -> Iterator[Selection]:
    if isinstance(node, promql.VectorSelector):
        yield Selection(node.name, grouped | {matcher.name for matcher in node.matchers.matchers})
        return
    if isinstance(node, promql.MatrixSelector):
        yield from _walk(node.vector_selector, grouped)
        return
    if isinstance(node, promql.AggregateExpr):
        grouped |= set(node.modifier.labels) if node.modifier else set()
    for child in (getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param")):
        if isinstance(child, promql.Expr):
            yield from _walk(child, grouped)
    for child in getattr(node, "args", []):
        yield from _walk(child, grouped)


def templated_labels(text: str) -> set[str]:
    """Return the labels that a text such as a legend or a summary writes out."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}", text))
