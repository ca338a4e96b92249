"""Triton's link to the GPU's driver: a small C extension that Triton compiles when it is first used.

An image has no compiler. It brings the extension along (`deploy/Dockerfile`) and names it in STRUCTKV_TRITON_DRIVER.
"""

import os
import shutil
from pathlib import Path


def prepare() -> bool:
    """Have Triton take the extension that was brought along, if there is one; tell whether it can have any."""
    import triton  # noqa: PLC0415  it is there with CUDA builds of torch only

    brought = Path(os.environ.get("STRUCTKV_TRITON_DRIVER", ""))
    if brought.is_file():
        triton.knobs.build.impl = lambda *_: str(brought)
        return True
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
