"""The report's pictures. Figures are made without pyplot, so nothing is kept between them."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.record import Record, Row


def draw(record: Record) -> Figure | None:
    """Draw a part's picture; None if it has none, or nothing to show."""
    drawer = _DRAWERS.get(record.part.partition("-")[0])
    return None if drawer is None or not any(row.samples for row in record.rows) else drawer(record)


def _grouped(axes: Axes, rows: Sequence[Row], group: str, bar: str) -> None:
    """Draw bars of medians, whiskers from min to max, grouped by one parameter and coloured by another."""
    rows = [row for row in rows if row.samples]
    groups = list(dict.fromkeys(row.parameters.get(group) for row in rows))
    bars = list(dict.fromkeys(row.parameters.get(bar) for row in rows))
    width = 0.8 / max(1, len(bars))
    for index, name in enumerate(bars):
        own = [row for row in rows if row.parameters.get(bar) == name]
        places = [groups.index(row.parameters.get(group)) + (index - (len(bars) - 1) / 2) * width for row in own]
        medians = [row.median or 0.0 for row in own]
        below = [middle - min(row.samples) for middle, row in zip(medians, own, strict=True)]
        above = [max(row.samples) - middle for middle, row in zip(medians, own, strict=True)]
        axes.bar(places, medians, width, yerr=[below, above], capsize=2, label=str(name))
    axes.set_xticks(range(len(groups)), [str(name) for name in groups])
    axes.set_xlabel(group)
    axes.set_ylabel(rows[0].unit if rows else "")
    axes.legend(fontsize="small")


def _two(
    record: Record, left: tuple[str, str, str, str], right: tuple[str, str, str, str], *, log: bool = False
) -> Figure:
    """Draw two panels, each of a row's name, a title, and what is grouped and coloured by."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (name, title, group, bar) in zip(figure.subplots(1, 2), (left, right), strict=True):
        _grouped(axes, [row for row in record.rows if row.name == name], group, bar)
        axes.set_title(title)
        if log:
            axes.set_yscale("log")
    return figure


_DRAWERS: Mapping[str, Callable[[Record], Figure]] = {
    "prefill": lambda record: _two(
        record,
        ("ttft", "time to first token", "length", "method"),
        ("peak_memory", "peak memory beyond the weights", "length", "method"),
    ),
    "transfer": lambda record: _two(
        record,
        ("throughput", "throughput", "codec", "way"),
        ("exposed_share", "exposed transfer", "link", "codec"),
    ),
    "decode": lambda record: _two(
        record,
        ("throughput", "tokens a second", "batch", "method"),
        ("itl", "inter-token latency", "batch", "method"),
        log=True,
    ),
    "gateway": lambda record: _two(
        record,
        ("first_token", "time to first token", "length", "way"),
        ("streamed_token", "a streamed token", "length", "way"),
    ),
    "interference": lambda record: _two(
        record,
        ("ttft", "a short prompt's time to first token", "beside", "length"),
        ("layer", "one layer of the long prompt", "length", "length"),
    ),
}
