"""Every command and program in README.md and docs/ is run, against a real service, or says why it cannot be."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import ALL, REASONS, ROOT, Block
from tests.e2e.conftest import Up, free_port
from tests.e2e.processes import wait_for

PORTS = re.compile(r"(?:(?<=127\.0\.0\.1:)|(?<=-port ))\d{4,5}\b")
BINARIES = Path(sys.executable).parent

Workplace = Callable[[Block], Path]


def named(*modes: str) -> pytest.MarkDecorator:
    found = [block for block in ALL if block.mode in modes]
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Return a document's folder: what is in a checkout, and what its earlier commands left."""
    folders: dict[Path, Path] = {}

    def folder(block: Block) -> Path:
        if block.document not in folders:
            folders[block.document] = tmp_path_factory.mktemp(block.document.stem)
            for entry in ROOT.iterdir():
                (folders[block.document] / entry.name).symlink_to(entry)
            (folders[block.document] / ".curlrc").write_text("fail-with-body\nshow-error\nsilent\n")
        return folders[block.document]

    return folder


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Put the project's programs first, and let curl fail where an answer is an error."""
    found = {"PATH": f"{BINARIES}:{os.environ['PATH']}", "CURL_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return os.environ | found | variables


def command(block: Block, text: str) -> list[str]:
    return [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]


def run(block: Block, text: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command(block, text),
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@named("")
def test_it_runs(block: Block, workplace: Workplace, up: Up) -> None:
    ports = {"8000": up.url.rpartition(":")[2], "9100": str(up.metrics_port)}
    text = PORTS.sub(lambda match: ports.get(match[0], match[0]), block.text)
    run(block, text, workplace(block), BASE_URL=f"{up.url}/v1")


@named("running")
def test_it_is_what_the_tests_have_started(block: Block, up: Up) -> None:
    program, *flags = PORTS.sub("PORT", block.text).split()
    assert Path(program).name == Path(up.process.args[0]).name
    assert flags == PORTS.sub("PORT", " ".join(up.process.args[1:])).split()[: len(flags)]


@named("ready at")
def test_it_starts(block: Block, workplace: Workplace, tmp_path: Path) -> None:
    """Run it at free ports until it is ready, then stop it as Ctrl-C would."""
    ports = {port: str(free_port()) for port in PORTS.findall(f"{block.text} {block.said}")}
    text, url = (PORTS.sub(lambda match: ports[match[0]], said) for said in (block.text, block.said))
    folder = workplace(block)
    with (tmp_path / "output").open("wb") as output:
        started = subprocess.Popen(
            command(block, text),
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: answers(url, started, tmp_path / "output"), timeout_seconds=150)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGINT)
        started.wait(60)


def answers(url: str, started: "subprocess.Popen[bytes]", output: Path) -> bool:
    assert started.poll() is None, output.read_text()
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@named("planned")
def test_make_knows_it(block: Block, workplace: Workplace) -> None:
    assert set(block.text.split()) & {"make"}
    assert run(block, block.text, workplace(block), MAKEFLAGS="n")


@named("not run")
def test_what_is_not_run_could_be_read(block: Block, workplace: Workplace) -> None:
    if block.language == "python":
        compile(block.text, block.name, "exec")
    else:
        subprocess.run(["bash", "-n", "-c", block.text], check=True)


@named("not run", "planned")
def test_the_reason_is_one_of_few(block: Block) -> None:
    assert block.said in REASONS


def test_the_first_pages_are_run() -> None:
    """So that an extraction that finds nothing, or a habit of excuses, is noticed."""
    run = {block.document.name for block in ALL if block.mode in {"", "ready at"}}
    assert {"README.md", "quickstart.md", "operations.md", "tuning.md", "security.md"} <= run
