"""What metrics say, and what of it has changed."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, float]
"""By name, with labels as in `name{label=value}`; of histograms counts only."""


def of_registry(registry: CollectorRegistry) -> Samples:
    return _samples(registry.collect())


def of_text(scraped: str) -> Samples:
    return _samples(text_string_to_metric_families(scraped))


def _samples(families: "list[Metric]") -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("structkv_") and not sample.name.endswith(("_bucket", "_sum", "_created")):
                labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def changes(before: Samples, after: Samples) -> Samples:
    """Return by how much each sample has changed, of those that have."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}
