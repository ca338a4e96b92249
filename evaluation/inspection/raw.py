"""The numbers themselves, for those who plot them otherwise."""

import math
from dataclasses import asdict

from torch import Tensor

from evaluation.inspection.inspection import Inspection


def as_json(inspection: Inspection) -> dict[str, object]:
    """Return everything as JSON has it. Of a token that a layer did not see, the score is null."""
    recording = inspection.recording
    return {
        "model": {
            "name": inspection.model,
            "fingerprint": recording.model.fingerprint,
            "num_layers": recording.model.num_layers,
            "num_kv_heads": recording.model.num_kv_heads,
            "sliding_windows": recording.model.windows,
        },
        "selection": asdict(recording.selection),
        "stats": {
            "method": recording.selection.method,
            "prompt_tokens": recording.prompt_tokens,
            "pivot_layer": recording.pivot_layer,
            "kept_tokens_per_layer": recording.kept_tokens,
            "skeleton_bytes": inspection.skeleton_bytes,
            "full_kv_bytes": inspection.full_kv_bytes,
        },
        "bytes_by_codec": dict(inspection.num_bytes),
        "codec": inspection.codec,
        "compute_seconds": recording.compute_seconds,
        "prompt": {"format": "chat" if inspection.chat else "raw", **asdict(inspection.prompt)},
        "sink_tokens": inspection.sink_tokens,
        "window_tokens": inspection.window_tokens,
        "kept_positions": [places.tolist() for places in recording.kept],
        "layers_run": recording.layers_run.tolist(),
        "scores": {
            "name": inspection.score_name,
            "by_layer": {str(layer): numbers(scores) for layer, scores in recording.scores.items()},
        },
        "centrality": None if recording.centrality is None else numbers(recording.centrality),
        "blocks": None if recording.blocks is None else recording.blocks.tolist(),
        "pivot": asdict(inspection.pivot),
    }


def numbers(values: Tensor, digits: int = 6) -> list[float | None]:
    """Return values with so many significant digits; null where there is none, or an infinite one."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
