"""The tests' own thread without root's rights: what is read-only, or belongs to others, is as for users."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

_VERSION_3 = 0x20080522


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write everywhere by its capabilities; the effective ones are put aside for a while.

    Nothing to do for other users. Skips where the system has no capabilities.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("run by root, on a system without capabilities")
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, held) != 0:
        pytest.skip("run by root, whose capabilities cannot be read")
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] = fewer[3] = 0
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0
