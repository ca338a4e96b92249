"""The GPU's benchmark as it can be tried without one: tiny, and on a CPU."""

from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import check, passes
from benchmarks.gpu.run import run
from benchmarks.gpu.table import table
from benchmarks.record import Record, Row

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


def test_a_parts_results_are_there_when_it_is_told_of(tmp_path: Path) -> None:
    out = tmp_path / "new" / "gpu.json"
    lines = []
    for line in run(out, "cpu", 3, ["splits", "prompts"]):
        lines.append(line)
        if line.startswith("splits"):
            assert Record.read(out).find("part", part="splits") is not None
            assert Record.read(out).find("ttft") is None
    assert [line.partition(":")[0] for line in lines] == ["splits", "prompts"]
    record = Record.read(out)
    for method in ("structkv", "full"):
        assert (record.median("ttft", method=method, length=2048) or 0) > 0
        phases = [record.median("phase", method=method, length=2048, phase=name) for name in ("compute", "encode")]
        assert all(seconds is not None and seconds > 0 for seconds in phases)
    assert any(line.startswith("| structkv | 2048 | ") for line in table(record))


def test_a_part_that_takes_too_long_fails_and_leaves_what_it_measured(tmp_path: Path) -> None:
    lines = list(run(tmp_path / "gpu.json", "cpu", 0.01, ["prompts"]))
    assert lines[0].startswith("FAIL  prompts comes to its end")
    assert "**failed**: prompts comes to its end, not done within 1 s" in "\n".join(
        table(Record.read(tmp_path / "gpu.json"))
    )


@pytest.mark.parametrize(("value", "passed"), [(0.5, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_a_check_holds_up_to_its_limit(value: float, passed: bool) -> None:
    assert passes(check("anything", value, 1.0)) is passed


def test_a_check_with_an_error_fails() -> None:
    assert not passes(Row("check", {"what": "anything", "limit": 1}, [0.0], "", "it did not run"))


@pytest.mark.parametrize("name", ["gpu", "gpu-before"])
def test_what_is_told_of_a_run_is_in_its_table(name: str) -> None:
    record = Record.read(RESULTS / f"{name}.json")
    lines = list(table(record))
    assert any(line.startswith("| 64 | 3328 | greedy | ") for line in lines)
    assert {str(row.parameters["part"]) for row in record.rows if row.name == "part"} <= set(PARTS)
