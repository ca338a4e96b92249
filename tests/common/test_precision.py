"""In which precision weights are held."""

import pytest
import torch

from common.model import precision
from common.model.precision import choose_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZES = {"hidden_size": 64, "inner_size": 128, "step_tokens": 1}


def test_a_setting_is_taken_as_it_is() -> None:
    assert choose_dtype("float16", CPU, torch.float32, **SIZES) is torch.float16


def test_a_gpu_takes_bfloat16() -> None:
    assert choose_dtype("auto", GPU, torch.float32, **SIZES) is torch.bfloat16


def test_float32_weights_are_never_rounded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_linear_seconds", lambda *_: pytest.fail("nothing to measure"))
    assert choose_dtype("auto", CPU, torch.float32, **SIZES) is torch.float32


@pytest.mark.parametrize("quicker", [torch.float32, torch.bfloat16])
def test_others_take_what_is_quicker(quicker: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_linear_seconds", lambda dtype, *_: 1.0 if dtype is quicker else 2.0)
    assert choose_dtype("auto", CPU, torch.bfloat16, **SIZES) is quicker


@pytest.mark.parametrize("step_tokens", [1, 64])
def test_it_is_measured(step_tokens: int) -> None:
    chosen = choose_dtype("auto", CPU, torch.bfloat16, hidden_size=64, inner_size=128, step_tokens=step_tokens)
    assert chosen in {torch.float32, torch.bfloat16}
