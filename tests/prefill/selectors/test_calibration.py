"""Finding a model's pivot over several prompts, storing it, and the worker that takes it up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.errors import ModelLoadError
from common.model.decoder import DecoderModel
from common.model.source import fingerprint, resolve
from common.settings import DEFAULT_MODEL
from common.skeleton.selection import Selection
from services.prefill.engine import PrefillEngine
from services.prefill.selectors.base import Scope
from services.prefill.structkv.calibration import Calibration, Observer, calibrate, default_path, stored_pivot
from services.prefill.structkv.pivot import LayerMetrics
from tests.prefill.selectors import naive

SELECTION = Selection.of({"variant": "paper"})
PROMPTS = [[3 + (i * i * 31 + i * seed) % 250 for i in range(150 + 10 * seed)] for seed in (1, 2, 3)]


def observed(model: DecoderModel) -> list[Observer]:
    engine = PrefillEngine(model)
    observers = []
    for prompt in PROMPTS:
        observer = Observer(SELECTION, engine.scope(prompt))
        list(engine.run_all(prompt, [observer]))
        observers.append(observer)
    return observers


def test_metrics_are_averaged_and_the_largest_transition_in_the_band_wins(
    tiny: Callable[[str], DecoderModel],
) -> None:
    model = tiny("llama")
    found = calibrate("print", observed(model))
    means = []
    for layer in range(6):
        rows = []
        for prompt in PROMPTS:
            _, recorder = naive.run_layers(model, prompt, torch.arange(len(prompt)), 6)
            query, key, _, scaling = recorder.layers[layer]
            saliency = naive.saliency(query, key, scaling, 8).sum(0)[4:-8]
            rows.append(naive.metrics(saliency.tolist(), 0.2))
        means.append(tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)))
    scores = naive.transition(means[1:5], (0.2, 0.3, 0.5))  # the band of six layers is 2 to 4
    assert found.entropy == pytest.approx([mean[0] for mean in means], rel=1e-3)
    assert found.sparsity == pytest.approx([mean[1] for mean in means], rel=1e-3)
    assert found.variance == pytest.approx([mean[2] for mean in means], rel=1e-3)
    assert found.band == [2, 3, 4]
    assert found.transition == pytest.approx(scores, rel=1e-2)
    assert found.pivot_layer == 2 + scores.index(max(scores)) + 1
    assert (found.prompts, found.prompt_tokens) == (3, 170)


def with_metrics(variances: list[float], full_layers: tuple[int, ...]) -> Observer:
    observer = Observer(SELECTION, Scope(1000, 20, full_layers, torch.device("cpu")))
    observer.metrics = [LayerMetrics(1.0, 0.5, variance) for variance in variances]
    return observer


def test_layers_outside_the_band_cannot_win() -> None:
    variances = [0.0] * 3 + [500.0] * 6 + [510.0] * 6 + [900.0] * 5
    found = calibrate("print", [with_metrics(variances, tuple(range(20)))])
    assert found.pivot_layer == 10


def test_a_single_candidate_is_the_pivot() -> None:
    assert calibrate("print", [with_metrics([1.0, 2.0], (7, 19))]).pivot_layer == 8


def test_a_model_without_a_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="no full-attention layer"):
        calibrate("print", [with_metrics([1.0], (19,))])


class TestStored:
    @pytest.fixture
    def found(self, tiny: Callable[[str], DecoderModel]) -> Calibration:
        return calibrate("print", observed(tiny("llama")))

    def test_written_and_read(self, found: Calibration, tmp_path: Path) -> None:
        found.write(tmp_path / "new" / "pivot.json")
        assert Calibration.read(tmp_path / "new" / "pivot.json", "print") == found
        assert stored_pivot("print", tmp_path / "new" / "pivot.json") == found.pivot_layer

    def test_the_cache_folder_has_one_for_each_model(
        self, found: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STRUCTKV_CACHE", str(tmp_path))
        assert stored_pivot("print") is None
        found.write(default_path("print"))
        assert stored_pivot("print") == found.pivot_layer
        assert stored_pivot("another") is None

    def test_another_models_file_is_refused(self, found: Calibration, tmp_path: Path) -> None:
        found.write(tmp_path / "pivot.json")
        with pytest.raises(ModelLoadError, match="print"):
            stored_pivot("another", tmp_path / "pivot.json")

    @pytest.mark.parametrize("content", ["", "[]", json.dumps({"pivot_layer": 3})])
    def test_a_file_that_is_no_calibration_is_refused(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "pivot.json").write_text(content)
        with pytest.raises(ModelLoadError, match="not a calibration"):
            stored_pivot("print", tmp_path / "pivot.json")

    def test_a_named_file_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="not a calibration"):
            stored_pivot("print", tmp_path / "missing.json")

    def test_the_default_model_comes_calibrated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = resolve(DEFAULT_MODEL, weights=True)
        monkeypatch.setenv("STRUCTKV_CACHE", str(tmp_path))
        assert stored_pivot(fingerprint(folder)) == 17
