"""`python -m evaluation.tradeoff`: the curves of docs/tuning.md, from committed results.

Both runs asked the same prompts: thirteen tasks of 2,048 tokens, four samples each. One varies the KV budget, the other
what goes on after the pivot; where they meet, in the default, they are the same answers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_RESULTS = Path(__file__).parent / "results"
_STRUCT = "structkv:struct_retention="
_DEFAULT_STRUCT = 0.2


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a budget.

    Attributes:
        rate: the budget, as a share of the prompt's tokens.
        share: of the full context's score.
        error: its standard error.
        prefill: seconds of prefill over those of the full context.
    """

    rate: float
    share: float
    error: float
    prefill: float


def kv_points(results: Path = _RESULTS) -> list[Point]:
    """Return what `kv_retention` was measured at, ascending."""
    content = _read(results / "rates-2048")
    budgets = {entry["budget"] for entry in content["shares"] if entry["budget"]}
    points = [_point(content, "structkv", budget, float(budget.rstrip("%")) / 100) for budget in budgets]
    return sorted(points, key=lambda point: point.rate)


def struct_points(results: Path = _RESULTS) -> list[Point]:
    """Return what `struct_retention` was measured at, ascending."""
    content = _read(results / "ablations-2048")
    methods = [entry["method"] for entry in content["shares"] if entry["method"].startswith(_STRUCT)]
    points = [_point(content, method, "10%", float(method.removeprefix(_STRUCT))) for method in methods]
    return sorted([*points, _point(content, "structkv", "10%", _DEFAULT_STRUCT)], key=lambda point: point.rate)


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def _point(content: dict[str, Any], method: str, budget: str, rate: float) -> Point:
    (found,) = (entry for entry in content["shares"] if (entry["method"], entry["budget"]) == (method, budget))
    seconds = _seconds(content, method, budget) / _seconds(content, "full", "")
    return Point(rate, found["share"], found["error"], seconds)


def _seconds(content: dict[str, Any], method: str, budget: str) -> float:
    own = [row["prefill_seconds"] for row in content["rows"] if (row["method"], row["budget"]) == (method, budget)]
    return float(sum(own) / len(own))


def draw(kv: Sequence[Point], struct: Sequence[Point]) -> Figure:
    """Draw the share of the full context's score over each budget, and over the second one prefill's time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _curve(left, kv, "kv_retention, with 20% going on after the pivot")
    _curve(right, struct, "struct_retention, with 10% kept")
    left.set_ylabel("share of the full context's score")
    seconds = right.twinx()
    seconds.plot([point.rate for point in struct], [point.prefill for point in struct], "s--", color="tab:gray")
    seconds.set_ylim(0, 1)
    seconds.set_ylabel("prefill seconds / the full context's (dashed)", color="tab:gray")
    return figure


def _curve(axes: Axes, points: Sequence[Point], label: str) -> None:
    rates = [point.rate for point in points]
    errors = [point.error for point in points]
    axes.errorbar(rates, [point.share for point in points], errors, marker="o", capsize=3)
    axes.axhline(1.0, color="tab:gray", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:.0%}" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.5)
    axes.set_xlabel(label)


def main(out: Annotated[Path, typer.Argument(help="The picture to write.")]) -> None:
    """Draw what the two budgets cost and give."""
    draw(kv_points(), struct_points()).savefig(out, dpi=110)


if __name__ == "__main__":
    typer.run(main)
