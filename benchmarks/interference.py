"""Interference: how much longer a short prompt takes while a long one is being computed."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.client import Client
from benchmarks.measure import random_tokens
from benchmarks.processes import Processes
from benchmarks.record import Record, Row, head
from common.model import decoder

_SHORT_TOKENS = 200
_START_SECONDS = 3.0
"""How long the long prompt has been running by when the short one is sent."""


def measure(model: str, length: int, repeats: int, log_folder: Path, start_seconds: float = _START_SECONDS) -> Record:
    """Measure beside a `full` prompt of a length in tokens, on the real service."""
    spec = decoder.load(model, device="cpu", dtype="auto").spec
    long = random_tokens(min(length, spec.max_tokens - 1), spec.vocab_size)
    alone, beside, layers = [], [], []
    with Processes(model, log_folder) as processes, ThreadPoolExecutor(1) as background:
        url, _ = processes.gateway(processes.worker("decode"), processes.worker("prefill"))
        with Client(url) as client, Client(url) as other:
            client.complete(_short(spec.vocab_size, 0), 1)  # warms up
            for repeat in range(repeats):
                alone.append(client.complete(_short(spec.vocab_size, 1 + 2 * repeat), 1).ttft)
                running = background.submit(other.complete, long, 1, {"method": "full"})
                time.sleep(start_seconds)
                beside.append(client.complete(_short(spec.vocab_size, 2 + 2 * repeat), 1).ttft)
                if running.done():
                    raise RuntimeError(f"the long prompt ended within {start_seconds} s: nothing was measured")
                layers.append(running.result().stats["prefill_seconds"] / spec.num_layers)
    added = [late - early for late, early in zip(beside, alone, strict=True)]
    short, beside_long = {"length": _SHORT_TOKENS}, {"length": _SHORT_TOKENS, "beside": len(long)}
    rows = [
        Row("ttft", {**short, "beside": None}, alone, "s"),
        Row("ttft", beside_long, beside, "s"),
        Row("added", beside_long, added, "s"),
        Row("layer", {"length": len(long)}, layers, "s"),
        Row("added_layers", beside_long, [a / layer for a, layer in zip(added, layers, strict=True)], "layers"),
    ]
    return Record("interference", head(model=model), rows)


def _short(vocab_size: int, seed: int) -> list[int]:
    return random_tokens(_SHORT_TOKENS, vocab_size, seed)
