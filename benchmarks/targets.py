"""What the measurements are held against, and whether they meet it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.attack.summary import held_share
from benchmarks.record import Parameter, Record

Records = Mapping[str, Record]
"""By part."""

Figure = Callable[[Records], float | None]
"""Works a target's figure out; None if what it needs was not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a figure should keep.

    Attributes:
        part: whose section names it.
        text: what is meant, for people.
        at_most: whether the bound is an upper one.
        percent: whether the figure is a share, shown in percent.
    """

    part: str
    text: str
    figure: Figure
    bound: float
    at_most: bool = True
    percent: bool = False

    def met(self, figure: float) -> bool:
        """Tell whether a figure keeps the bound."""
        return figure <= self.bound if self.at_most else figure >= self.bound


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Return the quotient of two medians; None if one is missing."""
    return None if numerator is None or not denominator else numerator / denominator


def ttft_ratio(records: Records, method: str, other: str, length: int) -> float | None:
    """Return one method's time to first token over another's."""
    if (record := records.get("prefill")) is None:
        return None
    medians = [record.median("ttft", method=name, length=length) for name in (method, other)]
    return ratio(*medians)


def bound_share(records: Records, length: int) -> float | None:
    """Return how much of the speed-up that FLOPs allow structkv reaches."""
    speedup = ttft_ratio(records, "full", "structkv", length)
    return None if speedup is None else ratio(speedup, records["prefill"].median("flop_bound", length=length))


def longest(records: Records) -> int:
    """Return the longest prompt of the prefill part, in tokens; 0 if there is none."""
    record = records.get("prefill")
    lengths = [row.parameters.get("length") for row in record.rows] if record is not None else []
    return max((length for length in lengths if isinstance(length, int)), default=0)


def decode_ratio(records: Records, name: str, other: str, batch: int) -> float | None:
    """Return structkv's throughput or latency in decode over another's."""
    if (record := records.get("decode")) is None:
        return None
    medians = [record.median(name, method=method, batch=batch) for method in ("structkv", other)]
    return ratio(*medians)


def _ttft(method: str, other: str) -> Figure:
    return lambda records: ttft_ratio(records, method, other, longest(records))


def _decode(name: str, other: str, batch: int) -> Figure:
    return lambda records: decode_ratio(records, name, other, batch)


def _median(part: str, name: str, **parameters: Parameter) -> Figure:
    return lambda records: records[part].median(name, **parameters) if part in records else None


TARGETS: Sequence[Target] = (
    Target("prefill", "structkv / full, longest prompt", _ttft("structkv", "full"), 0.74),
    Target(
        "prefill",
        "share of the speed-up that FLOPs allow, longest prompt",
        lambda records: bound_share(records, longest(records)),
        0.92,
        at_most=False,
        percent=True,
    ),
    Target("prefill", "full / transformers, longest prompt", _ttft("full", "transformers"), 1.0),
    Target("prefill", "structkv / vLLM in float32, longest prompt", _ttft("structkv", "vllm-float32"), 0.80),
    Target(
        "prefill",
        "scoring and selection of structkv's prefill, longest prompt",
        lambda records: _median("prefill", "selecting_share", length=longest(records))(records),
        0.025,
        percent=True,
    ),
    Target(
        "transfer",
        "transfer / time to first token, loopback",
        _median("transfer", "exposed_share", link="loopback"),
        0.03,
        percent=True,
    ),
    Target(
        "transfer",
        "transfer / time to first token, 1 Gbit/s",
        _median("transfer", "exposed_share", link="1 Gbit/s"),
        0.10,
        percent=True,
    ),
    Target(
        "transfer",
        "int8 skeleton / whole cache in bfloat16",
        _median("transfer", "share_of_full", codec="int8"),
        0.06,
        percent=True,
    ),
    Target("decode", "tokens/s / transformers', batch 8", _decode("throughput", "transformers", 8), 3.0, at_most=False),
    Target("decode", "inter-token latency / transformers', batch 1", _decode("itl", "transformers", 1), 0.5),
    Target("decode", "inter-token latency / vLLM's in float32, batch 1", _decode("itl", "vllm-float32", 1), 0.7),
    Target(
        "attack",
        "attacks under which another client is served",
        lambda records: held_share(records["attack"]) if "attack" in records else None,
        1.0,
        at_most=False,
        percent=True,
    ),
    Target(
        "interference",
        "a short prompt's wait beside a long one, in layers of the long one",
        _median("interference", "added_layers"),
        2.0,
    ),
)
