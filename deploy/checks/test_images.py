"""The Dockerfile by hadolint."""

from pathlib import Path

from deploy.checks.tools import run


def test_the_dockerfile_is_sound() -> None:
    done = run("hadolint", "deploy/Dockerfile")
    assert done.code == 0, done.output


def test_a_bad_one_is_noticed(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN sudo apt-get install curl\n")
    done = run("hadolint", bad)
    assert done.code != 0
    assert "DL3006" in done.output
