"""RESULTS.md from the parts' JSON files: targets, and for each part a table, a picture and where it was measured."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.attack.table import table as attack_table
from benchmarks.charts import draw
from benchmarks.gpu.table import table as gpu_table
from benchmarks.record import Record, Row
from benchmarks.targets import TARGETS, Records, Target, bound_share, decode_ratio, ratio, ttft_ratio

PARTS: Mapping[str, str] = {
    "prefill": "Prefill",
    "prefill-random-llama": "Prefill of random weights in Llama-3.1-8B's shape",
    "transfer": "Transfer",
    "pipeline": "Pipeline",
    "decode": "Decode",
    "gateway": "Gateway",
    "interference": "Interference",
    "attack": "Attack",
    "gpu": "On a GPU",
    "gpu-before": "On a GPU, at first",
    "attack-before": "Attack, before bodies, grammars and connections were bounded",
}
_NOTHING = "\N{EN DASH}"
_PREFIXES = {"s": ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")), "bytes": ((2.0**30, 2.0**-20, "MiB"),)}
"""By unit: below which value what is shown in which, and how often it goes into it."""


def write(folder: Path) -> Path:
    """Write RESULTS.md beside the folder of the JSON files, the pictures into it; return the report's path."""
    records = {part: Record.read(path) for part in PARTS if (path := folder / f"{part}.json").exists()}
    lines = ["# Speed", "", *_introduction(), "", "## Targets", "", *_targets(records)]
    for part, record in records.items():
        table = _TABLES.get(record.part, _table)(record)
        lines += ["", f"## {PARTS[part]}", "", *_head(record), "", *table, *_ratios(records, part)]
        if (figure := draw(record)) is not None:
            figure.savefig(folder / f"{part}.png", dpi=110)
            lines += ["", f"![{PARTS[part]}]({folder.name}/{part}.png)"]
    path = folder.parent / "RESULTS.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _introduction() -> Iterator[str]:
    yield "Written by `make bench` and `make attack`. Values are medians, with the smallest and largest sample; what is"
    yield "compared was measured in turns in one run, with the same number of threads. Prompts are random token ids."


def _targets(records: Records) -> Iterator[str]:
    yield "| part | figure | measured | target | |"
    yield "|---|---|---|---|---|"
    for target in TARGETS:
        figure = target.figure(records)
        verdict = "not measured" if figure is None else "met" if target.met(figure) else "**not met**"
        sign = "≤" if target.at_most else "≥"
        bound = f"{sign} {_figure(target, target.bound)}"
        yield f"| {target.part} | {target.text} | {_figure(target, figure)} | {bound} | {verdict} |"


def _figure(target: Target, figure: float | None) -> str:
    if figure is None:
        return _NOTHING
    return f"{100 * figure:.3g}%" if target.percent else f"{figure:.3g}"


def _head(record: Record) -> Iterator[str]:
    head = record.head
    gpu = f", {head['gpu']}" if head.get("gpu") else ""
    yield f"- `{head['command']}`"
    yield f"- commit {head['commit']}, {head['date']} (UTC)"
    yield f"- {head['cpu']}, {head['cores']} cores, {head['ram_gib']} GiB RAM{gpu}"
    versions = head["versions"]
    assert isinstance(versions, dict)
    yield "- " + ", ".join(f"{name} {version}" for name, version in versions.items())
    shown = ("command", "commit", "date", "cpu", "cores", "ram_gib", "gpu", "versions")
    for name, value in head.items():
        if name not in shown:
            told = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
            yield f"- {name}: {told}"


def _table(record: Record) -> Iterator[str]:
    parameters = list(dict.fromkeys(name for row in record.rows for name in row.parameters))
    head = ["measured", *parameters, "median", "min", "max", "samples", "unit"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in record.rows:
        given = [_parameter(row, name) for name in parameters]
        yield "| " + " | ".join([row.name, *given, *_values(row)]) + " |"


def _parameter(row: Row, name: str) -> str:
    value = row.parameters.get(name)
    return "" if value is None else str(value)


def _values(row: Row) -> list[str]:
    if row.median is None:
        return [_NOTHING, "", "", "0", (row.error or "").replace("|", "\\|")]
    factor, unit = 1.0, row.unit
    for limit, times, name in reversed(_PREFIXES.get(row.unit, ())):
        if row.median < limit:
            factor, unit = times, name
    numbers = [f"{factor * value:.4g}" for value in (row.median, min(row.samples), max(row.samples))]
    return [*numbers, str(len(row.samples)), unit]


_TABLES: Mapping[str, Callable[[Record], Iterator[str]]] = {"attack": attack_table, "gpu": gpu_table}
"""Of the parts that have one of their own."""


def _ratios(records: Records, part: str) -> Iterator[str]:
    """Return the table of a part's ratios of medians, if it has any."""
    if part == "prefill":
        yield from _prefill_ratios(records)
    elif part == "prefill-random-llama":
        yield from _prefill_ratios({"prefill": records[part]})
    elif part == "decode":
        yield from _decode_ratios(records)
        yield from _step(records["decode"])


def _prefill_ratios(records: Records) -> Iterator[str]:
    rows = [row for row in records["prefill"].rows if row.name == "flop_bound"]
    yield ""
    yield "| length | pivot | structkv / full | FLOP bound | reached of it | full / transformers | structkv / vLLM float32 | structkv / vLLM auto |"  # noqa: E501
    yield "|" + "---|" * 8
    for row in rows:
        length = row.parameters["length"]
        assert isinstance(length, int)
        pairs = (("full", "transformers"), ("structkv", "vllm-float32"), ("structkv", "vllm-auto"))
        numbers = [
            _number(ttft_ratio(records, "structkv", "full", length)),
            _number(ratio(1.0, row.median)),
            _number(bound_share(records, length)),
            *(_number(ttft_ratio(records, *pair, length)) for pair in pairs),
        ]
        yield f"| {length} | {row.parameters.get('pivot_layer')} | " + " | ".join(numbers) + " |"


def _decode_ratios(records: Records) -> Iterator[str]:
    rows = records["decode"].rows
    batches = dict.fromkeys(row.parameters["batch"] for row in rows if row.name == "throughput")
    others = ("full", "transformers", "vllm-float32", "vllm-auto")
    for name, title in (("throughput", "tokens/s"), ("itl", "inter-token latency")):
        yield ""
        yield f"structkv's {title} over that of:"
        yield ""
        yield "| batch | " + " | ".join(others) + " |"
        yield "|" + "---|" * (1 + len(others))
        for batch in batches:
            assert isinstance(batch, int)
            yield f"| {batch} | " + " | ".join(_number(decode_ratio(records, name, o, batch)) for o in others) + " |"


def _step(record: Record) -> Iterator[str]:
    """Say where the time of a decode step goes, if that was measured."""
    rows = [row for row in record.rows if row.name == "step" and row.median is not None]
    if rows:
        parts = ", ".join(f"{row.parameters['part']} {_number(1e3 * (row.median or 0))} ms" for row in rows)
        yield ""
        yield f"Where the time of a step with one request goes: {parts}. Linear layers are bound by reading the"
        yield "weights; all else is small operations and the Python between them, which vLLM compiles away."


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3g}"
