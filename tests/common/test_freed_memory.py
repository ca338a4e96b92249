"""Freed blocks are kept where that is asked for."""

import subprocess
import sys

import pytest

from common import freed_memory

PROGRAM = """
import ctypes, sys
from common import freed_memory
if sys.argv[1] == "keep":
    freed_memory.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
lines = open("/proc/self/maps").read  # where a block of 16 MiB lies: in the heap, or in a mapping of its own
block = libc.malloc(16 << 20)
ranges = (line.split()[0].split("-") for line in lines().splitlines() if "[heap]" in line)
print(any(int(low, 16) <= block < int(high, 16) for low, high in ranges))
"""


@pytest.mark.skipif(freed_memory.platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.parametrize("keep", [True, False])
def test_a_large_block_lies_in_the_heap_only_if_it_is_to_be_kept(keep: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, "keep" if keep else "leave"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(keep)
