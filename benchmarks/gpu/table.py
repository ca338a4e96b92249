"""What the GPU showed, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.gpu.rows import passes
from benchmarks.record import Parameter, Record, Row

_NOTHING = "\N{EN DASH}"


def table(record: Record) -> Iterator[str]:
    """Return the lines of the tables: checks, prompts, steps, streams."""
    yield from _checks(record)
    yield from _prompts(record)
    yield from _steps(record)
    yield from _splits(record)
    yield from _streams(record)
    minutes = sum(row.samples[0] for row in record.rows if row.name == "part") / 60
    yield ""
    yield f"All parts took {minutes:.1f} minutes. Kernels and their times are in the JSON file."


def _checks(record: Record) -> Iterator[str]:
    checks = [row for row in record.rows if row.name == "check"]
    failed = [row for row in checks if not passes(row)]
    tests = sum(int(row.samples[0]) for row in record.rows if row.name == "tests")
    yield f"{len(checks) - len(failed)} of {len(checks)} checks pass, and {tests} tests marked `gpu`. Results are held"
    yield "against transformers' in float32: an error may be 1.3 times that of its own bfloat16."
    for row in failed:
        yield f"- **failed**: {row.parameters['what']}, {row.error or f'{row.samples[0]:.3g}'}"


def _prompts(record: Record) -> Iterator[str]:
    rows = [row for row in record.rows if row.name.startswith("ttft")]
    if not rows:
        return
    yield ""
    yield "Seconds to the last message of a prompt's skeleton, each at a length not seen before. What is queued on the"
    yield "device counts for the phase that waits for it."
    yield ""
    speedups = {row.parameters["about"]: row for row in record.rows if row.name == "speedup"}
    lines = []
    for row in rows:
        method, length = row.parameters["method"], row.parameters["length"]
        cells = [str(method), str(length), _how_long(row)]
        if row.name == "ttft":
            cells += [_seconds(_value(record, "phase", {**row.parameters, "phase": phase})) for phase in _PHASES]
            peak = _value(record, "peak_memory", row.parameters)
            cells.append(_NOTHING if peak is None else f"{peak / 2**30:.1f}")
            if method == "structkv" and (speedup := speedups.get(length)) is not None:
                cells.append(f"{min(speedup.samples):.2f} to {max(speedup.samples):.2f} times")
        lines.append(cells + [""] * (len(_PROMPT_HEAD) - len(cells)))
    yield from _markdown(_PROMPT_HEAD, lines)


_PHASES = ("queue", "compute", "select", "encode")
_PROMPT_HEAD = ("method", "tokens", "seconds", *_PHASES, "peak, GiB", "as fast as full")


def _how_long(row: Row) -> str:
    if row.name != "ttft":
        return f"{_seconds(row.median)}, extrapolated"
    layers = row.parameters.get("layers")
    return _seconds(row.median) if layers is None else f"{_seconds(row.median)}, {layers} layers"


def _steps(record: Record) -> Iterator[str]:
    rows = [row for row in record.rows if row.name == "step"]
    if not rows:
        return
    yield ""
    yield "Decode steps over a filled pool, host work and sampling included:"
    yield ""
    lines = []
    for row in rows:
        batch, kept = int(str(row.parameters["batch"])), row.parameters["kept"]
        device = _value(record, "device", {"batch": batch, "kept": kept})
        lines.append(
            [
                str(batch),
                str(kept),
                str(row.parameters.get("sampling", "")),
                row.error if row.median is None else f"{1e3 * row.median:.2f}",
                _NOTHING if row.median is None else f"{batch / row.median:.0f}",
                f"{1e3 * device:.2f}" if device is not None and row.parameters.get("sampling") == _PROFILED else "",
            ]
        )
    yield from _markdown(
        ["batch", "kept tokens", "sampling", "ms a step", "tokens/s", "of it on the device, ms"], lines
    )


_PROFILED = "drawn, top-p"


def _splits(record: Record) -> Iterator[str]:
    rows = [row for row in record.rows if row.name == "attention"]
    if not rows:
        return
    yield ""
    yield "Decode attention of one layer by the number of shares that each sequence is cut into, in microseconds; the"
    yield "one that is chosen is bold:"
    yield ""
    counts = list(dict.fromkeys(int(str(row.parameters["splits"])) for row in rows))
    lines = []
    for batch, kept in dict.fromkeys((row.parameters["batch"], row.parameters["kept"]) for row in rows):
        line = [str(batch), str(kept)]
        for count in counts:
            row = record.find("attention", batch=batch, kept=kept, splits=count)
            cell = _NOTHING if row is None or row.median is None else f"{1e6 * row.median:.0f}"
            line.append(f"**{cell}**" if row is not None and row.parameters["chosen"] == count else cell)
        lines.append(line)
    yield from _markdown(["batch", "kept tokens", *map(str, counts)], lines)


def _streams(record: Record) -> Iterator[str]:
    counts = list(dict.fromkeys(row.parameters["streams"] for row in record.rows if row.name == "client_ttft"))
    if not counts:
        return
    yield ""
    yield "Both services on the one GPU, a model in Llama-3.2-1B's shape, streams through HTTP:"
    yield ""
    lines = []
    for count in counts:
        first = record.find("client_ttft", streams=count)
        assert first is not None
        gaps = [_value(record, "client_itl", {"streams": count, "share": share}) for share in ("median", "p99")]
        rates = [_value(record, name, {"streams": count}) for name in ("client_throughput", "client_decode")]
        lines.append(
            [
                str(count),
                *(f"{seconds:.3f}" for seconds in (first.median or 0.0, max(first.samples))),
                *(_NOTHING if gap is None else f"{1e3 * gap:.1f}" for gap in gaps),
                *(_NOTHING if rate is None else f"{rate:.0f}" for rate in rates),
            ]
        )
    head = ["streams", "TTFT median, s", "max, s", "ITL median, ms", "p99, ms", "tokens/s", "while all decode"]
    yield from _markdown(head, lines)


def _value(record: Record, name: str, parameters: Mapping[str, Parameter]) -> float | None:
    return record.median(name, **parameters)


def _seconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str | None]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield "| " + " | ".join(cell or "" for cell in line) + " |"
