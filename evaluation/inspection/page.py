"""The HTML: one file that needs nothing else. The text is in it as text, the numbers as JSON; neither is trusted."""

import base64
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from torch import Tensor

from evaluation.inspection.curves import peaks, top_of_scored
from evaluation.inspection.inspection import Inspection
from evaluation.inspection.raw import numbers
from evaluation.inspection.summary import lines, method

_FOLDER = Path(__file__).with_name("page")
_MOST_POINTS = 800
_DIGITS = 3


def render(inspection: Inspection) -> str:
    """Return the page of one prompt."""
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["verbatim"] = _verbatim
    recording = inspection.recording
    return environment.get_template("page.html").render(
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704  both are ours
        script=Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),  # noqa: S704
        tokens=recording.prompt_tokens,
        method=method(inspection),
        mean_kept=inspection.mean_kept_tokens,
        pivot_layer=recording.pivot_layer,
        layers=recording.model.num_layers,
        pieces=list(zip(inspection.prompt.pieces, _marks(inspection), strict=True)),
        cut=inspection.went_all_the_way < recording.prompt_tokens,
        has_window=inspection.window_tokens > 0,
        has_blocks=recording.blocks is not None,
        summary=lines(inspection),
        bars=_bars(inspection),
        selection=asdict(recording.selection),
        data=_data(inspection),
    )


def _verbatim(text: str) -> Markup:
    """Escape a text so that a browser gives it back as it was: a bare carriage return would become a line feed."""
    return escape(text).replace("\r", Markup("&#13;"))


def _marks(inspection: Inspection) -> list[str]:
    """Return each token's classes: what is known of it whichever layer is shown."""
    recording = inspection.recording
    tokens, num_layers = recording.prompt_tokens, recording.model.num_layers
    always = [False] * tokens
    if inspection.window_tokens:
        always[: inspection.sink_tokens] = [True] * min(tokens, inspection.sink_tokens)
        always[tokens - inspection.window_tokens :] = [True] * inspection.window_tokens
    cut = inspection.went_all_the_way < tokens
    goes_on = [cut and run == num_layers for run in recording.layers_run.tolist()]
    blocks = recording.blocks.tolist() if recording.blocks is not None else [0] * tokens
    starts = [place > 0 and block != blocks[place - 1] for place, block in enumerate(blocks)]
    named = zip(always, goes_on, starts, inspection.prompt.pieces, strict=True)
    return [_classes(a=kept, g=on, s=start, e=not piece, n="\n" in piece) for kept, on, start, piece in named]


def _classes(**switches: bool) -> str:
    return " ".join(name for name, switch in switches.items() if switch)


def _bars(inspection: Inspection) -> list[dict[str, object]]:
    """Return the bytes to be compared, each with its share of the largest."""
    whole = inspection.full_kv_bytes
    sizes = {"full cache, bfloat16": whole, **{f"skeleton, {name}": n for name, n in inspection.num_bytes.items()}}
    longest = max(sizes.values())
    return [
        {
            "name": name,
            "bytes": size,
            "share": size / whole,
            "width": 100 * size / longest,
            "chosen": name.endswith(f", {inspection.codec}"),
        }
        for name, size in sizes.items()
    ]


def _data(inspection: Inspection) -> dict[str, object]:
    """Return what the script draws from; per token and layer it is a bit, or a byte where KV heads choose alone."""
    recording = inspection.recording
    heads = recording.heads_keeping()
    per_head = any(places.dim() == 2 for places in recording.kept)
    rows = heads.numpy() if per_head else np.packbits(heads.bool().numpy(), axis=1, bitorder="little")
    return {
        "tokens": recording.prompt_tokens,
        "layers": recording.model.num_layers,
        "heads": recording.model.num_kv_heads if per_head else 1,
        "kept": base64.b64encode(rows.tobytes()).decode(),
        "keptPerLayer": recording.kept_tokens,
        "windows": recording.model.windows,
        "layersRun": recording.layers_run.tolist(),
        "tokenIds": recording.token_ids,
        "emptyNames": {
            place: inspection.prompt.names[place] for place, piece in enumerate(inspection.prompt.pieces) if not piece
        },
        "pivotLayer": recording.pivot_layer,
        "scoreName": inspection.score_name,
        "scores": _curves(inspection),
        "centrality": None if recording.centrality is None else numbers(recording.centrality, _DIGITS),
        "centralityCurve": None if recording.centrality is None else _curve(inspection, recording.centrality),
        "pivot": asdict(inspection.pivot),
    }


def _curves(inspection: Inspection) -> dict[str, object]:
    """Return each scored layer's curve, and under "all" the largest over the layers."""
    scores = inspection.recording.scores
    if not scores:
        return {}
    stacked = torch.stack([*scores.values()])
    highest = torch.where(stacked.isfinite(), stacked, -torch.inf).amax(dim=0)
    return {
        "all": _curve(inspection, highest),
        **{str(layer): _curve(inspection, values) for layer, values in scores.items()},
    }


def _curve(inspection: Inspection, values: Tensor) -> dict[str, object]:
    """Return a curve over the tokens, each point `width` of them, and the largest value that it is drawn for."""
    return {
        "values": numbers(peaks(values, _MOST_POINTS), _DIGITS),
        "width": -(-values.shape[0] // _MOST_POINTS),
        "top": top_of_scored(values, inspection.sink_tokens, inspection.window_tokens),
    }
