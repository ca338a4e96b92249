"""Where Triton's link to the driver comes from."""

import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import triton
from triton.runtime.build import compile_module_from_src

from common.model import triton_driver

MODULE = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "brought_along", "brought along", -1, NULL};
PyMODINIT_FUNC PyInit_brought_along(void) { return PyModule_Create(&definition); }
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extension")
    source, compiled = folder / "source.c", folder / "compiled.so"
    source.write_text(MODULE)
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", source, "-o", compiled], check=True)
    return compiled


@pytest.fixture(autouse=True)
def no_compiler(extension: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave Triton a machine without a compiler and a cache of its own; afterwards it compiles as it did."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    yield
    triton.knobs.build.impl = None


def test_without_a_compiler_there_is_none() -> None:
    assert not triton_driver.prepare()


def test_with_a_compiler_triton_helps_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/usr/bin/cc")
    assert triton_driver.prepare()
    assert triton.knobs.build.impl is None


def test_what_was_brought_along_is_loaded(extension: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTKV_TRITON_DRIVER", str(extension))
    assert triton_driver.prepare()
    assert compile_module_from_src("never compiled", "brought_along").__doc__ == "brought along"
