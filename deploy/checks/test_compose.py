"""The compose files by `docker compose config`, which needs no running engine."""

import re
from pathlib import Path

import pytest

from deploy.checks.tools import ROOT, Done, run

BASE = "docker-compose.yml"
FILES = sorted(path.name for path in ROOT.glob("docker-compose*.yml"))
REQUIRED = sorted({name for file in FILES for name in re.findall(r"\$\{(\w+):\?", (ROOT / file).read_text())})


@pytest.fixture(autouse=True)
def compose() -> None:
    """Say what is missing where docker has no compose."""
    assert run("docker", "compose", "version").code == 0, "docker has no compose: install its plugin"


def config(files: list[str], variables: dict[str, str], tmp_path: Path) -> Done:
    chosen = tmp_path / "variables"
    chosen.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    flags = [flag for file in files for flag in ("--file", file)]
    return run("docker", "compose", "--env-file", chosen, *flags, "--profile", "*", "config", "--quiet")


def filled() -> dict[str, str]:
    return {name: "1g" if "MEMORY" in name and "MIB" not in name else "1024" for name in REQUIRED}


@pytest.mark.parametrize("file", FILES)
def test_each_file_is_sound_on_top_of_the_first(file: str, tmp_path: Path) -> None:
    done = config([BASE] if file == BASE else [BASE, file], filled(), tmp_path)
    assert done.code == 0, done.output


def test_each_variable_that_is_needed_is_named_where_it_is_missing(tmp_path: Path) -> None:
    assert REQUIRED
    for missing in REQUIRED:
        done = config([BASE], {name: value for name, value in filled().items() if name != missing}, tmp_path)
        assert done.code != 0
        assert missing in done.output


def test_a_bad_file_is_noticed(tmp_path: Path) -> None:
    bad = tmp_path / "docker-compose.yml"
    bad.write_text("services:\n  gateway:\n    image: x\n    prots: []\n")
    done = run("docker", "compose", "--file", bad, "config", "--quiet")
    assert done.code != 0
    assert "prots" in done.output
