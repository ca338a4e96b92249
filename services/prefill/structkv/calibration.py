"""A model's pivot, found once over several prompts and stored under the model's fingerprint.

Attention settles at a layer that is the model's more than the prompt's: averaged over prompts, the metrics' jump is
clear where a single prompt has several maxima of T_l that are nearly equal.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from common.errors import ModelLoadError
from common.model.source import cache_dir
from common.skeleton.selection import Selection
from services.prefill.selectors.base import Decision, LayerView, Scope, Selector
from services.prefill.structkv.pivot import LayerMetrics, band_layers, layer_metrics, transition_scores

_INCLUDED = Path(__file__).with_name("calibrations")
"""Calibrations of models that we have measured, the default one's first of all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found.

    Attributes:
        fingerprint: of the model.
        pivot_layer: L*, how many of num_layers see the whole prompt.
        prompts: how many were averaged over.
        prompt_tokens: their mean length.
        layers: the full-attention layers, which were observed.
        entropy, sparsity, variance: H_l, rho_l, V_l of each of these, averaged.
        band: those of the layers that could be the pivot's.
        transition: T_l of each layer in the band.
    """

    fingerprint: str
    pivot_layer: int
    num_layers: int
    prompts: int
    prompt_tokens: float
    layers: list[int]
    entropy: list[float]
    sparsity: list[float]
    variance: list[float]
    band: list[int]
    transition: list[float]

    def write(self, path: Path) -> None:
        """Write the file that `read` reads; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, fingerprint: str) -> Self:
        """Read a file; raise ModelLoadError if it is no calibration, or another model's."""
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelLoadError(f"{path} is not a calibration: {error}") from error
        if found.fingerprint != fingerprint:
            raise ModelLoadError(f"{path} is for the model {found.fingerprint}, this one is {fingerprint}")
        return found


def default_path(fingerprint: str) -> Path:
    """Return where a model's calibration is written, and looked for first."""
    return cache_dir() / "calibration" / f"{fingerprint}.json"


def stored_calibration(fingerprint: str, path: Path | None = None) -> Calibration | None:
    """Return a model's calibration from a file: by default its own in the cache folder, else the one that comes along.

    None, and a line in the log, if the model was never calibrated. Raises ModelLoadError for a file that does not fit.
    """
    looked_for = [path] if path else [default_path(fingerprint), _INCLUDED / f"{fingerprint}.json"]
    chosen = next((file for file in looked_for if file.exists()), path)
    if chosen is None:
        extra = {"looked_for": [str(file) for file in looked_for]}
        logger.info("no calibration, pivots are detected online", extra=extra)
        return None
    found = Calibration.read(chosen, fingerprint)
    logger.info("calibration loaded", extra={"file": str(chosen), "pivot_layer": found.pivot_layer})
    return found


def stored_pivot(fingerprint: str, path: Path | None = None) -> int | None:
    """Return a model's L* as `stored_calibration` finds it; None if the model was never calibrated."""
    found = stored_calibration(fingerprint, path)
    return None if found is None else found.pivot_layer


class Observer(Selector):
    """Runs along with a prompt through all layers, keeps nothing, and notes each layer's metrics."""

    def __init__(self, selection: Selection, scope: Scope) -> None:
        super().__init__(selection, scope)
        self.metrics: list[LayerMetrics] = []

    def select(self, view: LayerView) -> Decision:
        """Note the metrics of the scored tokens."""
        saliency = self.over_heads(self.score(view))
        scored = saliency[self.selection.sink_tokens : saliency.shape[0] - self.selection.window_tokens]
        self.metrics.append(layer_metrics(scored, self.selection.struct_retention))
        return Decision(None, None)

    def score(self, view: LayerView) -> Tensor:
        """Return `S_j^(l)` by KV group."""
        return self.window_saliency(view)


def calibrate(fingerprint: str, observers: Sequence[Observer]) -> Calibration:
    """Average the metrics of prompts that have run, and take the largest T_l in the band: `L* = argmax_l T_l + 1`.

    Raises ValueError if no layer of the model can be the pivot.
    """
    scope = observers[0].scope
    band = band_layers(scope.full_layers, scope.num_layers)
    if not band:
        raise ValueError("the model has no full-attention layer in which the pivot could lie")
    metrics = torch.tensor([observer.metrics for observer in observers], dtype=torch.float64)  # [prompts, layers, 3]
    mean = [LayerMetrics(*row) for row in metrics.mean(dim=0).tolist()]
    places = [place for place, layer in enumerate(scope.full_layers) if place > 0 and layer in band]
    scores = transition_scores(mean[places[0] - 1 : places[-1] + 1]) if places else [0.0]  # one layer, no choice
    compared = [scope.full_layers[place] for place in places] or band
    return Calibration(
        fingerprint=fingerprint,
        pivot_layer=compared[scores.index(max(scores))] + 1,
        num_layers=scope.num_layers,
        prompts=len(observers),
        prompt_tokens=sum(observer.scope.num_tokens for observer in observers) / len(observers),
        layers=list(scope.full_layers),
        entropy=[m.entropy for m in mean],
        sparsity=[m.sparsity for m in mean],
        variance=[m.variance for m in mean],
        band=compared,
        transition=scores,
    )
