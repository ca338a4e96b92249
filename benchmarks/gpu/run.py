"""Runs the parts one after the other within a budget; the results so far are always on disk.

Each is a process of its own: a device that one of them leaves in a bad state is the next one's fresh, and one that
hangs is ended when its time is over.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import passes
from benchmarks.record import Record, Row, head

_GRACE_SECONDS = 5.0


def run(out: Path, device: str, minutes: float, names: Sequence[str]) -> Iterator[str]:
    """Measure the named parts; yield a line for each check and each part, the results being in `out` by then."""
    record = Record(out.stem, head(), [])
    deadline = time.monotonic() + 60 * minutes
    out.parent.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        shares = [PARTS[left].share for left in names[index:]]
        budget = (deadline - time.monotonic()) * shares[0] / sum(shares)
        started = time.monotonic()
        rows = _measure(name, device, budget)
        seconds = time.monotonic() - started
        rows.append(Row("part", {"part": name, "budget": round(budget, 1)}, [seconds], "s"))
        record = replace(record, rows=[*record.rows, *rows])
        record.write(out.parent)
        for row in rows:
            if row.name == "check":
                verdict = "pass" if passes(row) else "FAIL"
                yield f"{verdict}  {row.parameters['what']}: {row.samples[0]:.3g} of {row.parameters['limit']:.3g}"
            elif row.error is not None:
                yield f"none  {row.name} {dict(row.parameters)}: {row.error}"
        yield f"{name}: {len(rows)} rows in {seconds:.0f} of {budget:.0f} s"


def _measure(name: str, device: str, budget: float) -> list[Row]:
    """Run a part in a process of its own for at most so many seconds; return what it measured, and why it ended."""
    environment = dict(os.environ)
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.touch()
        command = [sys.executable, "-m", "benchmarks.gpu", name, device, str(path)]
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:  # noqa: S603
            try:
                code = process.wait(budget)
                failure = None if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                failure = f"not done within {budget:.0f} s"
            finally:
                _end(process)
        rows = [Row.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if failure is not None:
        rows.append(Row("check", {"what": f"{name} comes to its end", "limit": 0}, [1], "", failure))
    return rows


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
