"""`structkv inspect` as its user runs it, on a tiny model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evaluation.inspection.command import STEM
from services.cli import app

TEXT = " ".join(["the", "a", "of", "1", "2", "3", "to", "and"] * 40)


def inspect(folder: Path, out: Path, *flags: str, stdin: str | None = None) -> Result:
    command = ["inspect", "--model", str(folder), "--out", str(out), "--device", "cpu", *flags]
    return CliRunner().invoke(app, command, input=stdin)


def test_three_files_and_a_summary(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = inspect(folder, out, "--prompt", TEXT, "--method", "structkv:variant=paper,pivot_layer=4")
    assert result.exit_code == 0, result.output
    numbers = json.loads((out / f"{STEM}.json").read_text())
    assert numbers["selection"]["variant"] == "paper"
    assert numbers["selection"]["window_tokens"] == 8
    assert numbers["prompt"]["text"] == TEXT
    stats = numbers["stats"]
    assert stats["prompt_tokens"] == 320
    assert stats["kept_tokens_per_layer"] == [32] * 6
    assert (out / f"{STEM}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / f"{STEM}.html").read_text().startswith("<!doctype html>")
    for said in ("320 tokens", "32 tokens a layer (10.0%)", "L* = 4 of 6", f"{stats['skeleton_bytes']:,}"):
        assert said in result.output
    for ending in ("html", "png", "json"):
        assert str(out / f"{STEM}.{ending}") in result.output.replace("\n", "")


def test_standard_input_and_a_budget_in_tokens(folder: Path, tmp_path: Path) -> None:
    result = inspect(folder, tmp_path, "--file", "-", "--kv-tokens", "50", stdin=TEXT)
    assert result.exit_code == 0, result.output
    stats = json.loads((tmp_path / f"{STEM}.json").read_text())["stats"]
    assert stats["kept_tokens_per_layer"] == [50] * 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "a prompt is needed"),
        (["--prompt", " "], "empty"),
        (["--prompt", "the " * 2000], "the model's length is 1024"),
        (["--prompt", TEXT, "--method", "magic"], "method must be one of"),
        (["--prompt", TEXT, "--method", "structkv:colour=red"], "no parameter 'colour'"),
        (["--prompt", TEXT, "--method", "structkv:decay=7"], "decay must be"),
        (["--prompt", TEXT, "--kv-retention", "0"], "kv_retention must be"),
        (["--prompt", TEXT, "--kv-tokens", "-3"], "kv_tokens must not"),
        (["--prompt", TEXT, "--prompt-format", "poem"], "the prompt format is"),
        (["--prompt", TEXT, "--prompt-format", "chat"], "no chat template"),
    ],
)
def test_what_makes_no_sense_is_named(flags: list[str], said: str, folder: Path, tmp_path: Path) -> None:
    result = inspect(folder, tmp_path / "out", *flags)
    assert result.exit_code == 2
    assert said in result.output
    assert not list((tmp_path / "out").glob("*")), "nothing is written"


def test_files_that_are_not_there_and_folders_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    missing = inspect(folder, tmp_path, "--file", str(tmp_path / "missing.txt"))
    unwritable = inspect(folder, tmp_path / "file", "--prompt", TEXT)
    assert missing.exit_code == unwritable.exit_code == 1
    assert "missing.txt" in missing.output
    assert str(tmp_path / "file") in unwritable.output
