"""Runs the tools. One that is not there is a failure with its name, not a check left out."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools"


@dataclass(frozen=True)
class Done:
    """What a tool answered."""

    code: int
    output: str


def run(
    *command: str | Path, folder: Path = ROOT, given: str | None = None, environment: dict[str, str] | None = None
) -> Done:
    """Run a tool from the environment of the tests, from .tools, or from the system."""
    name, *rest = map(str, command)
    done = subprocess.run(
        [located(name), *rest], cwd=folder, input=given, env=environment, capture_output=True, text=True, check=False
    )
    return Done(done.returncode, done.stdout + done.stderr)


def located(name: str) -> str:
    """Return where a tool is; fail where it is not."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    assert found, f"{name} is missing: `make deploy-tools` brings what Debian and npm have; docker comes with an engine"
    return found
