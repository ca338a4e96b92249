from pathlib import Path

import pytest

from benchmarks.record import Parameter, Record, Row, head
from benchmarks.report import write
from benchmarks.targets import TARGETS


def row(name: str, median: float, unit: str = "s", **parameters: Parameter) -> Row:
    return Row(name, parameters, [0.9 * median, median, 1.2 * median], unit)


HEAD = {
    "command": "python -m benchmarks prefill",
    "commit": "abc1234-dirty",
    "date": "2026-01-02T03:04+00:00",
    "cpu": "A CPU",
    "cores": 2,
    "ram_gib": 23.5,
    "gpu": None,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "model": "tiny",
    "vllm-auto": {"vllm": "0.32.0"},
}
PREFILL = Record(
    "prefill",
    HEAD,
    [
        row("ttft", 9.0, method="full", length=4096),
        row("ttft", 20.0, method="full", length=8192),
        row("ttft", 14.0, method="structkv", length=8192),
        row("ttft", 19.0, method="transformers", length=8192),
        Row("ttft", {"method": "vllm-float32"}, [], "s", "ImportError: a | b"),
        row("selecting_share", 0.0102, "of structkv's prefill", length=8192, pivot_layer=17),
        row("flop_bound", 1.6, "times as fast as full", length=8192, pivot_layer=17),
        row("peak_memory", 3.0 * 2**20, "bytes", method="full", length=8192),
    ],
)
DECODE = Record(
    "decode",
    HEAD,
    [
        row("throughput", 300.0, "tokens/s", method="structkv", batch=8),
        row("throughput", 50.0, "tokens/s", method="transformers", batch=8),
        row("itl", 0.02, method="structkv", batch=1),
        row("itl", 0.05, method="transformers", batch=1),
        row("client_itl", 0.07, method="structkv", batch=1),
    ],
)


@pytest.fixture
def report(tmp_path: Path) -> str:
    folder = tmp_path / "results"
    for record in (PREFILL, DECODE):
        record.write(folder)
    path = write(folder)
    assert path == tmp_path / "RESULTS.md"
    for part in ("prefill", "decode"):
        assert (folder / f"{part}.png").stat().st_size > 1000
    return path.read_text(encoding="utf-8")


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert Record.read(PREFILL.write(tmp_path)) == PREFILL


def test_targets_have_their_figures_and_verdicts(report: str) -> None:
    assert "| structkv / full, longest prompt | 0.7 | ≤ 0.74 | met |" in report
    assert "| share of the speed-up that FLOPs allow, longest prompt | 89.3% | ≥ 92% | **not met** |" in report
    assert "| full / transformers, longest prompt | 1.05 | ≤ 1 | **not met** |" in report
    assert "| structkv / vLLM in float32, longest prompt | \N{EN DASH} | ≤ 0.8 | not measured |" in report
    assert "| scoring and selection of structkv's prefill, longest prompt | 1.02% | ≤ 2.5% | met |" in report
    assert "| tokens/s / transformers', batch 8 | 6 | ≥ 3 | met |" in report
    assert "| inter-token latency / transformers', batch 1 | 0.4 | ≤ 0.5 | met |" in report
    assert report.count("not measured") == len(TARGETS) - 6


def test_parts_say_where_they_come_from(report: str) -> None:
    assert "- `python -m benchmarks prefill`" in report
    assert "- commit abc1234-dirty, 2026-01-02T03:04+00:00 (UTC)" in report
    assert "- A CPU, 2 cores, 23.5 GiB RAM\n" in report
    assert "- torch 2.13.0, transformers 5.23.0" in report
    assert "- vllm-auto: vllm 0.32.0" in report
    assert "![Prefill](results/prefill.png)" in report


def test_tables_have_units_ratios_and_errors(report: str) -> None:
    assert "| ttft | structkv | 8192 |  | 14 | 12.6 | 16.8 | 3 | s |" in report
    assert "| peak_memory | full | 8192 |  | 3 | 2.7 | 3.6 | 3 | MiB |" in report
    assert "| itl | structkv | 1 | 20 | 18 | 24 | 3 | ms |" in report
    assert "| 8192 | 17 | 0.7 | 0.625 | 0.893 | 1.05 | \N{EN DASH} | \N{EN DASH} |" in report
    assert "ImportError: a \\| b" in report


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    text = write(tmp_path).read_text(encoding="utf-8")
    assert text.count("not measured") == len(TARGETS)


def test_the_head_keeps_the_peers_path_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "prefill", "--peer-python", "/secret/bin/python", "--repeats", "3"])
    made = head(model="tiny")
    assert made["command"] == "python -m benchmarks prefill --peer-python PEER_PYTHON --repeats 3"
    assert made["model"] == "tiny"
    assert made["cores"]
