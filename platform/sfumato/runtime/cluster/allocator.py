"""Makes the C library keep freed memory, so that every step finds the memory of the last one.

glibc returns large freed blocks to the system and requests them again in the next step, which then faults on
each page: thousands per step, up to a tenth of the training time on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_KEPT = 512 << 20
_GROWTH = 64 << 20
_LARGEST = 32 << 20  # the most that glibc takes: what is larger goes back at once
_THEIRS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Keep up to half a GiB for this process's next allocations; returns whether that was possible.

    Does nothing if the environment configures allocation, or without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _THEIRS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _KEPT, _M_TOP_PAD: _GROWTH}
    taken = [mallopt(name, value) for name, value in wanted.items()]
    return all(taken)
