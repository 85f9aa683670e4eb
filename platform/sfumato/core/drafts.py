"""Where a result is written before it gets its name: beside it, hidden, with modes by the user's umask."""

from __future__ import annotations

import re
import secrets
from pathlib import Path


def beside(path: Path) -> Path:
    """A hidden place in the same folder, which nothing has: what is written there is renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def result_of(path: str) -> str:
    """What is written at a place of `beside`: the name that the user knows. Other paths as they are."""
    return re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]{8}(?=/|$)", r"\1\2", path)


def folder_beside(path: Path) -> Path:
    """The same, as an empty folder. Those of `tempfile` ignore the umask."""
    draft = beside(path)
    draft.mkdir()
    return draft
