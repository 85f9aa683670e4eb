"""Where a result is written before it gets its name: beside it, hidden, with modes by the user's umask."""

from __future__ import annotations

import secrets
from pathlib import Path


def beside(path: Path) -> Path:
    """A hidden place in the same folder, which nothing has: what is written there is renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def folder_beside(path: Path) -> Path:
    """The same, as an empty folder. Those of `tempfile` ignore the umask."""
    draft = beside(path)
    draft.mkdir()
    return draft
