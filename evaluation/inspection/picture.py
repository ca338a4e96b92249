"""The PNG: what is kept by layer and place, the curves behind it, the pivot, and the bytes."""

from collections.abc import Sequence

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from evaluation.inspection.curves import peaks, top_of_scored
from evaluation.inspection.inspection import Inspection
from evaluation.inspection.summary import method

SIZE_INCHES = (12.5, 10.0)
DPI = 100
_MOST_COLUMNS = 1200

# Okabe and Ito's palette, which colour-blind people tell apart.
_KEPT = "#e69f00"
_PIVOT = "#d55e00"
_SALIENCY = "#0072b2"
_CENTRALITY = "#009e73"
_SEEN = "#f1f1ee"
_NOT_RUN = "#c9cbd1"


def draw(inspection: Inspection) -> Figure:
    """Draw one prompt. The picture has SIZE_INCHES at DPI, however long the prompt is."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(5, 2.4, 3), width_ratios=(3, 2))
    heat = figure.add_subplot(grid[0, :])
    curves = figure.add_subplot(grid[1, :], sharex=heat)
    _draw_heat(heat, inspection)
    _draw_curves(curves, inspection)
    _draw_pivot(figure.add_subplot(grid[2, 0]), inspection)
    _draw_bytes(figure.add_subplot(grid[2, 1]), inspection)
    recording = inspection.recording
    share = inspection.mean_kept_tokens / recording.prompt_tokens
    figure.suptitle(
        f"What the model remembers of {recording.prompt_tokens:,} tokens: {inspection.mean_kept_tokens:,.0f} "
        f"in each layer on average ({share:.1%}), by {method(inspection)}"
    )
    return figure


def heat_colours(kept: Tensor, layers_run: Tensor, most_columns: int = _MOST_COLUMNS) -> Tensor:
    """Return the heat map's pixels, [L, columns, 3] in 0 to 1, from shares kept [L, N] and layers run [N].

    A column of several tokens is as strong as the root of their share, so that one kept token is seen.
    """
    width = -(-kept.shape[1] // most_columns)
    run = torch.arange(kept.shape[0])[:, None] < layers_run
    kept_share, run_share = (_means(x.double(), width) for x in (kept, run))
    background = _mix(_rgb(_NOT_RUN), _rgb(_SEEN), run_share)
    return _mix(background, _rgb(_KEPT), kept_share.sqrt())


def _means(values: Tensor, width: int) -> Tensor:
    """Return the mean of every `width` tokens; the last stretch may be shorter."""
    starts = range(0, values.shape[1], width)
    return torch.stack([values[:, start : start + width].mean(dim=1) for start in starts], dim=1)


def _mix(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return low + (high - low) * share[..., None]


def _rgb(colour: str) -> Tensor:
    return torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)


def _draw_heat(axes: Axes, inspection: Inspection) -> None:
    recording = inspection.recording
    tokens, layers = recording.prompt_tokens, recording.model.num_layers
    shares = recording.heads_keeping().double() / recording.model.num_kv_heads
    pixels = heat_colours(shares, recording.layers_run).numpy()
    width = -(-tokens // _MOST_COLUMNS)
    extent = (-0.5, pixels.shape[1] * width - 0.5, layers - 0.5, -0.5)
    axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_xlim(-0.5, tokens - 0.5)
    axes.set_ylabel("layer")
    _mark_always_kept(axes, inspection)
    legend: list[Artist] = [Patch(color=_KEPT, label="kept"), Patch(color=_SEEN, label="seen, not kept")]
    if inspection.went_all_the_way < tokens:
        legend.append(Patch(color=_NOT_RUN, label="left behind"))
    if recording.pivot_layer is not None:
        line = axes.axhline(recording.pivot_layer - 0.5, color=_PIVOT, linestyle="--")
        line.set_label(f"L* = {recording.pivot_layer}: the layers above it see the whole prompt")
        legend.append(line)
    axes.legend(handles=legend, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(legend), frameon=False)


def _mark_always_kept(axes: Axes, inspection: Inspection) -> None:
    """Draw lines where the sinks end and the window begins."""
    tokens = inspection.recording.prompt_tokens
    if inspection.window_tokens:
        for place in (inspection.sink_tokens - 0.5, tokens - inspection.window_tokens - 0.5):
            axes.axvline(place, color="black", linewidth=0.6, linestyle=":")


def _draw_curves(axes: Axes, inspection: Inspection) -> None:
    """Draw the largest score over the layers, and the centrality, of every stretch of tokens."""
    recording = inspection.recording
    axes.set_xlabel("token")
    if not recording.scores:
        axes.text(0.5, 0.5, "nothing was scored", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    _draw_curve(axes, highest_score(inspection), inspection, f"{inspection.score_name}, largest over layers", _SALIENCY)
    handles = [*axes.lines]
    if recording.centrality is not None:
        other = axes.twinx()
        _draw_curve(other, recording.centrality, inspection, "centrality", _CENTRALITY)
        handles += other.lines
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def highest_score(inspection: Inspection) -> Tensor:
    """Return each token's largest score over the layers, [N]; NaN where no layer gave it a finite one."""
    scores = torch.stack([*inspection.recording.scores.values()])
    highest = torch.where(scores.isfinite(), scores, -torch.inf).amax(dim=0)
    return torch.where(highest.isfinite(), highest, torch.nan)


def _draw_curve(axes: Axes, values: Tensor, inspection: Inspection, name: str, colour: str) -> None:
    drawn = peaks(values, _MOST_COLUMNS)
    width = -(-values.shape[0] // _MOST_COLUMNS)
    middles = [place * width + (width - 1) / 2 for place in range(drawn.shape[0])]
    axes.plot(middles, drawn.numpy(), color=colour, linewidth=0.9, alpha=0.85, label=name)
    top = top_of_scored(values, inspection.sink_tokens, inspection.window_tokens)
    bottom = float(drawn[drawn.isfinite()].min()) if drawn.isfinite().any() else 0.0
    low = min(0.0, bottom)
    axes.set_ylim(low, low + 1.08 * max(top - low, 1e-12))
    axes.tick_params(axis="y", colors=colour)


def _draw_pivot(axes: Axes, inspection: Inspection) -> None:
    """Draw T over the band, and what it is made of, each between its least and its largest value."""
    finding, pivot = inspection.pivot, inspection.recording.pivot_layer
    axes.set_title(finding.origin, fontsize=10)
    axes.set_xlim(-0.5, inspection.recording.model.num_layers - 0.5)
    axes.set_xlabel("layer")
    axes.set_ylim(-0.05, 1.05)
    if pivot is not None:
        axes.axvline(pivot - 0.5, color=_PIVOT, linestyle="--", label=f"L* = {pivot}")
    if finding.layers:
        metrics = {"-entropy H": [-h for h in finding.entropy], "sparsity rho": finding.sparsity}
        metrics["variance V"] = finding.variance
        for (name, values), style in zip(metrics.items(), (":", "-.", "--"), strict=True):
            axes.plot(finding.layers, _between_extremes(values), color="0.45", linestyle=style, label=name)
        axes.plot(finding.band, finding.transition, color=_SALIENCY, marker="o", label="transition T")
        axes.set_ylabel("T; the others between their extremes", fontsize=9)
    else:
        axes.set_yticks([])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _between_extremes(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / max(high - low, 1e-20) for value in values]


def _draw_bytes(axes: Axes, inspection: Inspection) -> None:
    whole = inspection.full_kv_bytes
    bars = {"full cache, bfloat16": whole, **{f"skeleton, {name}": n for name, n in inspection.num_bytes.items()}}
    colours = ["0.6", *(_KEPT if name == inspection.codec else "0.8" for name in inspection.num_bytes)]
    drawn = axes.barh(list(bars), [n / 1e6 for n in bars.values()], color=colours)
    axes.bar_label(drawn, [f"{n / 1e6:,.2f} MB, {n / whole:.1%}" for n in bars.values()], padding=4, fontsize=9)
    axes.set_xlim(0, 1.75 * max(bars.values()) / 1e6)
    axes.set_xlabel("MB")
    axes.invert_yaxis()
    axes.set_title("keys and values", fontsize=10)
