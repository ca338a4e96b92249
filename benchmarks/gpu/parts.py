"""The parts in their order, each with its share of the time."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from benchmarks.gpu.prompts import longest, longest_whole, prompts
from benchmarks.gpu.rows import check
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.splits import splits
from benchmarks.gpu.steps import steps
from benchmarks.gpu.streams import streams
from benchmarks.gpu.truth import truth
from benchmarks.record import Row

_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure, in a process of its own.

    Attributes:
        measure: yields rows; what it has yielded counts also if it fails or its time ends.
        share: of the time, against the others'.
    """

    measure: Callable[[Scale], Iterator[Row]]
    share: float


def marked_tests(_: Scale) -> Iterator[Row]:
    """Yield how the tests that are marked `gpu` went; where there is none they are skipped."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", f"--junitxml={report}"]
        done = subprocess.run([*command, "tests/common", "tests/decode", "tests/prefill"], cwd=_ROOT, check=False)  # noqa: S603
        suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314  pytest wrote it
        assert suite is not None
        passed = sum(len(case) == 0 for case in suite.iter("testcase"))
        yield Row("tests", {"marked": "gpu"}, [passed], "passed")
        yield check("tests marked gpu that do not pass", int(suite.attrib["failures"]) + int(suite.attrib["errors"]), 0)
        yield check("exit code of pytest", done.returncode, 0)


PARTS = {
    "truth": Part(truth, 50),
    "splits": Part(splits, 20),
    "steps": Part(steps, 50),
    "prompts": Part(prompts, 100),
    "streams": Part(streams, 100),
    "longest": Part(longest, 50),
    "tests": Part(marked_tests, 110),
    "longest-whole": Part(longest_whole, 130),
}
