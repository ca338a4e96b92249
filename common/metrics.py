"""What the services count, for Prometheus. A label has a handful of values, never a request's own."""

from prometheus_client import Counter, Gauge, start_http_server

STORE_FALLBACKS = Counter(
    "structkv_store_fallbacks",
    "Skeletons that went on inline because the store failed, was full, or lost or damaged what it was given",
    ["reason"],
)
SKELETONS_REUSED = Counter("structkv_skeletons_reused", "Prompts that skipped prefill: their skeleton was in the store")
PREFILL_FAILOVERS = Counter(
    "structkv_prefill_failovers", "Prefill workers passed over before a skeleton was complete", ["reason"]
)
DECODE_FAILOVERS = Counter(
    "structkv_decode_failovers",
    "Decode workers passed over, before an answer's first token or in its middle",
    ["phase"],
)
KV_BLOCKS_USED = Gauge("structkv_kv_blocks_used", "Blocks of the decode worker's KV memory that requests hold")
PREFILL_PROMPTS = Gauge("structkv_prefill_prompts", "Prompts that the prefill worker has taken in and not yet finished")


def expose(host: str, port: int | None) -> None:
    """Answer scrapes at `/metrics` from a thread of its own, if there is a port to do so."""
    if port is not None:
        start_http_server(port, addr=host)
