"""Folders that last as long as their process; the next process removes those of killed ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK = "in-use"
_SETTLED_S = 60.0
"""A folder younger than this may have no lock yet."""


@contextlib.contextmanager
def scratch_folder(prefix: str, root: Path | None = None) -> Iterator[Path]:
    """A new folder under `root` (default: the system's temporary folder), removed at the end.

    Removes folders of this prefix that killed processes have left there.
    """
    root = root or Path(tempfile.gettempdir())
    _remove_abandoned(prefix, root)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        with (folder / _LOCK).open("w") as lock:  # the kernel gives it up with the process, however that ends
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(prefix: str, root: Path) -> None:
    for folder in root.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # of another user, locked, or gone by now
            about = folder.stat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < _SETTLED_S:
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
