"""How the layer was found from which the sequence shrinks, and the curves that it was found by."""

from dataclasses import dataclass
from typing import Self

from evaluation.inspection.recording import Recording
from services.prefill.structkv.calibration import Calibration
from services.prefill.structkv.pivot import band_layers, transition_scores

_UNCUT = "no cut: every layer sees the whole prompt"
_OWN_SHARE = "the fixed share of the layers that the method's paper takes"
_NO_PIVOT = {
    "pyramid_infer": "no pivot: fewer tokens go on after every layer",
    "structkv": "no cut: none of the model's layers can be the pivot",
}


@dataclass(frozen=True, slots=True)
class PivotFinding:
    """Where L* comes from.

    Attributes:
        origin: in words.
        layers: those that were compared and, if there is one, the layer before them; empty if nothing was measured.
        entropy, sparsity, variance: H_l, rho_l, V_l of each of them.
        band: those that could be the pivot's.
        transition: T_l of each layer in the band that was reached.
    """

    origin: str
    layers: tuple[int, ...] = ()
    entropy: tuple[float, ...] = ()
    sparsity: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    band: tuple[int, ...] = ()
    transition: tuple[float, ...] = ()

    @classmethod
    def of(cls, recording: Recording, calibration: Calibration | None) -> Self:
        """Say where a prompt's L* comes from; `calibration` is what the engine's was taken from."""
        selection = recording.selection
        if recording.is_whole:
            return cls("the prompt was left whole")
        if recording.pivot_layer is None:
            return cls(_NO_PIVOT.get(selection.method, _UNCUT))
        if selection.pivot_layer:
            return cls("set by the selection's pivot_layer")
        if selection.method != "structkv":
            return cls(_OWN_SHARE)
        if recording.observed:
            return cls._online(recording)
        assert calibration is not None  # or the layers would have been observed
        return cls._calibrated(calibration)

    @classmethod
    def _calibrated(cls, found: Calibration) -> Self:
        return cls(
            f"calibrated: the largest T over {found.prompts} prompts of {found.prompt_tokens:.0f} tokens on average",
            tuple(found.layers),
            tuple(found.entropy),
            tuple(found.sparsity),
            tuple(found.variance),
            tuple(found.band),
            tuple(found.transition),
        )

    @classmethod
    def _online(cls, recording: Recording) -> Self:
        layers, metrics = tuple(recording.observed), list(recording.observed.values())
        band = band_layers(layers, recording.model.num_layers)
        scores = transition_scores(metrics) if len(metrics) > 1 else []
        return cls(
            "found online, in this prompt: the largest T so far, once later layers had none larger",
            layers,
            tuple(m.entropy for m in metrics),
            tuple(m.sparsity for m in metrics),
            tuple(m.variance for m in metrics),
            tuple(band[len(band) - len(scores) :]),
            tuple(scores),
        )
