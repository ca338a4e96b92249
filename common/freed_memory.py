"""What the C library does with memory that is freed."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
_KEPT_BYTES = 256 * 1024 * 1024
_LARGEST_BYTES = 32 * 1024 * 1024
"""The most that glibc allows."""


def keep() -> None:
    """Keep freed blocks of up to 32 MiB for the next ones: a worker calls it before it makes messages.

    glibc gives large blocks back to the system as soon as they are free. The next one is new memory, every page of
    which costs a fault: for messages of 1 MiB, up to 20 times what writing them costs. Other libraries have no such
    call.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for name, value in ((_MMAP_THRESHOLD, _LARGEST_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES)):
        if not libc.mallopt(name, value):
            raise OSError(f"mallopt refuses {value} for {name}")
