"""A service's computing threads leave their cores soon, unless its user says otherwise."""

import os

import pytest

from common.openmp import spin_briefly

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)


def test_threads_spin_briefly() -> None:
    spin_briefly()
    assert int(os.environ["GOMP_SPINCOUNT"]) < 10_000
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(("variable", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_sets_stays(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    spin_briefly()
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == {variable: value}
