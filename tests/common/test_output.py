"""Nothing that happens to a service's output ends the service or holds it up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LOGS = """
import logging, sys
from common.logging import configure
configure("decode", "info")
for number in range(int(sys.argv[1])):
    logging.getLogger("test").info("line %d of many, which is not short " + "x" * 500, number)
open(sys.argv[2], "w").write("done")
"""


def start(script: str, *arguments: object, stderr: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stderr=stderr)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_lines_arrive_where_somebody_reads(tmp_path: Path) -> None:
    process = start(LOGS, 2000, tmp_path / "done", stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert [json.loads(line)["message"].split()[1] for line in said.splitlines()] == [str(n) for n in range(2000)]
    assert process.returncode == 0


def test_a_reader_that_has_ended(tmp_path: Path) -> None:
    source, sink = os.pipe()
    process = start(LOGS, 100, tmp_path / "done", stderr=sink)
    os.close(sink)
    os.close(source)
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_reader_that_has_stopped_reading(tmp_path: Path) -> None:
    source, sink = os.pipe()
    process = start(LOGS, 12_000, tmp_path / "done", stderr=sink)
    os.close(sink)
    assert process.wait(60) == 0, "neither its work nor its end waits for the reader"
    assert (tmp_path / "done").exists()
    os.close(source)


def test_what_was_lost_is_said_when_the_reader_comes_back(tmp_path: Path) -> None:
    source, sink = os.pipe()
    waits = LOGS + "import time; time.sleep(0.5); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", waits, "12000", str(tmp_path / "done")], stderr=sink, stdin=subprocess.PIPE
    )
    os.close(sink)
    wait_for((tmp_path / "done").exists)
    with os.fdopen(source) as reader:
        lines = []
        while not lines or "lines" not in lines[-1]:
            lines.append(json.loads(reader.readline()))
        assert process.stdin is not None
        process.stdin.close()
    assert lines[-1]["message"] == "lines could not be written"
    assert len(lines) - 1 + lines[-1]["lines"] == 12_000
    assert process.wait(60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(LOGS, 100, tmp_path / "done", stderr=full.fileno())
        assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_closed_stderr_is_not_taken_for_a_file_of_ours(tmp_path: Path) -> None:
    script = "from common.output import protect_descriptors; protect_descriptors()\n" + LOGS.replace(
        "import logging, sys", f"import logging, sys; data = open({str(tmp_path / 'data')!r}, 'w')"
    )
    command = [sys.executable, "-c", script, "10", str(tmp_path / "done")]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *command])
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()
    assert (tmp_path / "data").read_text() == ""


def test_what_ends_a_process_is_a_line_too() -> None:
    script = "from common.logging import configure\nconfigure('decode', 'info')\nraise ValueError('no such thing')"
    process = start(script, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    (line,) = map(json.loads, said.splitlines())
    assert (line["level"], line["message"]) == ("critical", "ended by an error")
    assert "ValueError: no such thing" in line["exception"]
    assert process.returncode == 1


def test_a_child_by_fork_logs_as_well() -> None:
    script = LOGS.split("for number")[0] + (
        "import os\nlogging.info('parent')\nif not os.fork():\n    logging.info('child')\n    os._exit(0)\nos.wait()"
    )
    process = start(script, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert sorted(json.loads(line)["message"] for line in said.splitlines()) == ["child", "parent"]


def test_a_supervisor_whose_reader_has_ended_goes_on(tmp_path: Path) -> None:
    """It reports a child's death through a console, to nobody, and starts it again."""
    script = f"""
import asyncio
from rich.console import Console
from common.output import take_over_stderr
from services.supervisor import Service, Supervisor

async def ready():
    return True

async def main():
    take_over_stderr()
    console = Console(stderr=True)
    async with Supervisor(lambda line: console.print(line)) as supervisor:
        child = "open({str(tmp_path / "starts")!r}, 'a').write('x'); import time; time.sleep(0.2)"
        await supervisor.start(Service("child", ["{sys.executable}", "-c", child], ready))
        await asyncio.Event().wait()

asyncio.run(main())
"""
    source, sink = os.pipe()
    process = start(script, stderr=sink)
    os.close(sink)
    os.close(source)
    starts = tmp_path / "starts"
    wait_for(lambda: starts.exists() and len(starts.read_text()) >= 3)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
