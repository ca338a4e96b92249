"""Where a decode step's time goes: the linear layers, attention, and what is left."""

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

_LINEAR = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::mv", "aten::addmv", "mkldnn::linear"})
_ATTENTION = "scaled_dot_product"


def step_parts(step: Callable[[], None], count: int) -> dict[str, float]:
    """Return the seconds that each part takes of one step, by torch's own account, over so many of them.

    What is left is everything between those calls: other operations, and Python.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(count):
            step()
    times = {entry.key: entry.self_cpu_time_total * 1e-6 for entry in profiled.key_averages()}
    linear = sum(seconds for name, seconds in times.items() if name in _LINEAR) / count
    attention = sum(seconds for name, seconds in times.items() if _ATTENTION in name) / count
    started = time.perf_counter()
    for _ in range(count):  # profiling has a cost of its own, which is not to count as what is left
        step()
    whole = (time.perf_counter() - started) / count
    return {"linear layers": linear, "attention": attention, "all else": max(0.0, whole - linear - attention)}
