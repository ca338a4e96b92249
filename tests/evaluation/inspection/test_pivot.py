"""Where the pivot comes from is said as it was."""

import pytest

from evaluation.inspection.pivot import PivotFinding
from evaluation.inspection.recording import record
from services.prefill.engine import PrefillEngine
from services.prefill.structkv.calibration import Calibration
from services.prefill.structkv.pivot import transition_scores
from tests.evaluation.inspection.conftest import OPTIONS, PROMPT, Examine, Selection

CALIBRATION = Calibration("print", 4, 6, 13, 900.0, [*range(6)], [3.0] * 6, [0.5] * 6, [1.0] * 6, [2, 3, 4], [0, 1, 0])


def test_an_online_pivot_comes_with_the_metrics_of_this_prompt(examined: Examine) -> None:
    inspection = examined(pivot="online")
    finding, recording = inspection.pivot, inspection.recording
    assert "online" in finding.origin
    assert finding.layers == tuple(range(1, recording.pivot_layer))
    assert finding.layers[1:] == finding.band == tuple(range(2, recording.pivot_layer))
    assert list(finding.transition) == transition_scores(list(recording.observed.values()))


def test_a_calibrated_pivot_comes_with_the_calibrations_curves(tiny) -> None:
    engine = PrefillEngine(tiny("llama"), calibrated_pivot=CALIBRATION.pivot_layer)
    recording = record(engine, PROMPT, Selection.of(OPTIONS), lambda layer: None)
    finding = PivotFinding.of(recording, CALIBRATION)
    assert recording.pivot_layer == 4
    assert "calibrated" in finding.origin
    assert "13 prompts of 900 tokens" in finding.origin
    assert finding.transition == (0, 1, 0)
    assert finding.band == (2, 3, 4)
    assert finding.variance == (1.0,) * 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pivot_layer": 2}, "pivot_layer"),
        ({"method": "fastkv"}, "the method's paper"),
        ({"method": "snapkv"}, "no cut"),
        ({"method": "pyramid_infer"}, "after every layer"),
        ({"method": "full"}, "left whole"),
        ({"floor_tokens": 500}, "left whole"),
    ],
)
def test_where_nothing_was_measured_the_reason_is_given(
    options: dict[str, object], said: str, examined: Examine
) -> None:
    finding = examined(**options).pivot
    assert said in finding.origin
    assert finding.layers == finding.transition == ()
