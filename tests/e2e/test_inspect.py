"""`structkv inspect` beside the running service: the same prompt, the same selection."""

import json
import subprocess
from pathlib import Path

import pytest

from evaluation.inspection.command import STEM
from tests.e2e.conftest import MODEL, STRUCTKV, Up
from tests.e2e.needle import needle_prompt


@pytest.mark.parametrize(
    ("method", "selection"),
    [
        ("structkv", {}),
        ("structkv:variant=paper,pivot_layer=14,codec=int4", {"variant": "paper", "pivot_layer": 14, "codec": "int4"}),
    ],
)
def test_what_is_drawn_is_what_the_service_says(
    method: str, selection: dict[str, object], up: Up, tmp_path: Path
) -> None:
    text, number = needle_prompt(3)
    (tmp_path / "text").write_text(text)
    flags = ["--method", method, "--file", str(tmp_path / "text"), "--out", str(tmp_path)]
    command = [STRUCTKV, "inspect", "--model", MODEL, *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inspected = json.loads((tmp_path / f"{STEM}.json").read_text())
    answer = up.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=1,
        extra_body={"structkv": {**selection, "return_stats": True}},
    )
    stats = answer.structkv  # type: ignore[attr-defined]
    assert inspected["stats"] == {name: stats[name] for name in inspected["stats"]}
    assert inspected["stats"]["prompt_tokens"] == answer.usage.prompt_tokens

    pieces = inspected["prompt"]["pieces"]
    assert text in "".join(pieces)
    if method == "structkv":
        kept = "".join(pieces[place] for place in inspected["kept_positions"][-1])
        assert number in kept, "the last layer remembers the needle"
