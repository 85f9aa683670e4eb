"""Makes the C library keep freed memory, so that every step or block finds the memory of the last one.

glibc gives large freed blocks back to the system and asks for them again in the next step, whose first touch
of each page is a fault: thousands a step, up to a tenth of the time of training on CPU. Every process of ours
that computes asks for it: training workers, evaluations and their actors, encoders, `sfumato sample`.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
_KEPT = 512 << 20
_GROWTH = 64 << 20
_LARGEST = 32 << 20  # the most that glibc takes: what is larger goes back at once, unless nothing is mapped
_MOST = (1 << 31) - 1  # mallopt takes an int
_THEIRS = (
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
)


def keep_freed_memory(*, of_any_size: bool = False) -> bool:
    """Keep up to half a GiB for what this process allocates next; whether it could be asked for.

    Blocks over 32 MiB still go back, unless memory `of_any_size` is kept, up to 2 GiB. Then a large block
    that lies below a small one may stay longer than needed: this is for processes that run a network over and
    over, whose activations take hundreds of megabytes, not for those that hold large arrays.

    Nothing is done where the environment says how to allocate, or without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _THEIRS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {_M_TOP_PAD: _GROWTH}
    if of_any_size:
        wanted |= {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _MOST}
    else:
        wanted |= {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _KEPT}
    taken = [mallopt(name, value) for name, value in wanted.items()]
    return all(taken)
