"""Waiting for what another process brings about."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_for(
    what: str,
    found: Callable[[], Any],
    *,
    seconds: float = 600,
    process: subprocess.Popen[str] | None = None,
) -> Any:
    """The first true answer of `found`; fails after so many seconds, or where `process` ends before."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        if process is not None:
            assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.1)
    return answer
