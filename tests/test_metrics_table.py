"""docs/metrics.md and the services' registries name the same metrics, of the same type, with the same labels."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from common.metrics import new_registry
from common.model.decoder import DecoderModel
from services.decode.engine import DecodeEngine
from services.decode.metrics import DecodeMetrics
from services.decode.pool import KVPool
from services.decode.scheduler import DecodeScheduler
from services.gateway.metrics import GatewayMetrics
from services.gateway.workers.routing import WorkerPool
from services.prefill.engine import PrefillEngine
from services.prefill.metrics import PrefillMetrics
from services.prefill.scheduler import PrefillScheduler

TABLE = Path(__file__).parents[1] / "docs" / "metrics.md"

Described = dict[str, tuple[str, frozenset[str]]]
"""By name as it is scraped: type and labels."""


def documented(*sections: str) -> Described:
    found: Described = {}
    section = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| `") and section in sections:
            name, kind, _, labels, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            assert meaning
            found[name.strip("`")] = kind, frozenset(re.findall(r"`(\w+)`", labels))
    return found


def registered(registry: CollectorRegistry) -> Described:
    found: Described = {}
    for family in registry.collect():
        if not family.name.startswith("structkv_"):
            continue
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert family.documentation
        found[name] = family.type, frozenset(labels)
    return found


def gateway(_: DecoderModel) -> CollectorRegistry:
    metrics = GatewayMetrics(new_registry("gateway", "model"))
    metrics.watch(*(WorkerPool(kind, [], interval_seconds=1, timeout_seconds=1) for kind in ("prefill", "decode")))
    return metrics.registry


def decode(model: DecoderModel) -> CollectorRegistry:
    registry = new_registry("decode", "model")
    engine = DecodeEngine(model, KVPool(model.spec, 16, model.device))
    scheduler = DecodeScheduler(engine, max_running=1, max_waiting_tokens=1, max_requests=1)
    DecodeMetrics(registry).watch(scheduler, engine.pool)
    return registry


def prefill(model: DecoderModel) -> CollectorRegistry:
    registry = new_registry("prefill", "model")
    PrefillMetrics(registry).watch(PrefillScheduler(PrefillEngine(model), 1))
    return registry


@pytest.mark.parametrize(
    ("section", "service"), [("Gateway", gateway), ("Decode worker", decode), ("Prefill worker", prefill)]
)
def test_the_table_says_what_a_service_serves(
    section: str, service: Callable[[DecoderModel], CollectorRegistry], tiny: Callable[[str], DecoderModel]
) -> None:
    registry = service(tiny("llama"))
    assert documented("Every service", section) == registered(registry)
    names = {family.name for family in registry.collect()}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= names


def test_no_section_is_left_out() -> None:
    sections = re.findall(r"^## (.*)$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == ["Every service", "Gateway", "Decode worker", "Prefill worker"]
