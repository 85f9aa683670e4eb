"""Lets Ray's own processes start slowly: an overloaded machine exceeds the 30 or 60 s that Ray gives them."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_PATIENCE_S = 600


@contextlib.contextmanager
def patience(folder: Path) -> Iterator[None]:
    """Ray waits for its raylet and its dashboard as long as they live, up to `_PATIENCE_S`."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    services: Any = importlib.import_module("ray._private.services")
    startup, get_node = constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S, services.get_node

    def asked_again(*arguments: Any) -> Any:
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # the raylet has not registered yet
                if time.monotonic() > end or not _lives("raylet/raylet", folder):
                    raise
                time.sleep(0.1)

    constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S, services.get_node = _PATIENCE_S, asked_again
    try:
        yield
    finally:
        constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S, services.get_node = startup, get_node


def _lives(program: str, folder: Path) -> bool:
    """Whether a child of this process runs that program for the cluster in the folder."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words and words[0].endswith(program) and str(folder) in " ".join(words):
                return process.status() != psutil.STATUS_ZOMBIE
    return False
