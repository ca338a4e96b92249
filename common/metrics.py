"""What every service's metrics share: a registry per process, and buckets.

Each service has its own metrics, in its `metrics.py`. A label has a handful of values, never a request's own.
"""

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector

from common.certificate_expiry import first_expiry

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0),
)
"""From a cached prompt to a million tokens that wait for their turn."""
STEP_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Of one token: finer where users feel it; the last ones are a failover's pause."""
TOKENS = (*(float(mantissa * 10**power) for power in range(6) for mantissa in (1, 2, 5)), 1e6)


def new_registry(service: str, model: str, certificates: Iterable[bytes] = ()) -> CollectorRegistry:
    """Return a process's registry, with what is known of the process itself and of the PEM files that it shows."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    names = ("version", "service", "model")
    build = Gauge("structkv_build_info", "Always 1; its labels say what runs", names, registry=registry)
    build.labels(version("structkv"), service, model).set(1)
    expiry = Gauge(
        "structkv_certificate_expiry_timestamp_seconds",
        "When the first of the certificates that this process read at its start ends",
        registry=registry,
    )
    expiry.set(first_expiry(certificates))
    return registry
