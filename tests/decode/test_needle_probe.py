"""The needle probe with the real model, whole and damaged."""

from pathlib import Path

import pytest
import torch

from common.model import decoder
from common.model.decoder import DecoderModel
from common.model.source import resolve
from common.settings import DEFAULT_MODEL
from common.skeleton import quantise
from services.decode.engine import DecodeEngine
from services.decode.needle_probe import finds_needles
from tests.conftest import poisoned_pool
from tests.families import tiny_model


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve(DEFAULT_MODEL, weights=True)


@pytest.fixture(scope="module")
def engine() -> DecodeEngine:
    model = decoder.load(DEFAULT_MODEL, device="cpu", dtype="float32")
    return DecodeEngine(model, poisoned_pool(model, 2 * 30 * 80))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_default_model_passes(codec: str, engine: DecodeEngine, folder: Path) -> None:
    assert finds_needles(engine, folder, codec)
    engine.pool.audit(())


def test_a_codec_that_loses_too_much_does_not(
    engine: DecodeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dequantise = quantise.dequantise_

    def coarse(codes: torch.Tensor, *rest: object) -> torch.Tensor:
        return dequantise(codes.div_(8).round_().mul_(8), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantise, "dequantise_", coarse)
    assert finds_needles(engine, folder, "int8")
    assert not finds_needles(engine, folder, "int4")


def test_a_model_that_finds_nothing_cannot_be_told(folder: Path) -> None:
    model = DecoderModel(tiny_model("llama", vocab_size=49152, max_position_embeddings=4096), "tiny")
    assert not finds_needles(DecodeEngine(model, poisoned_pool(model, 2 * 6 * 80)), folder, "int4")


def test_without_room_or_tokenizer_it_is_not_passed(engine: DecodeEngine, folder: Path, tmp_path: Path) -> None:
    assert not finds_needles(engine, tmp_path, "int4")
    tight = DecodeEngine(engine.model, poisoned_pool(engine.model, 100))
    assert not finds_needles(tight, folder, "int4")
