"""Named arrays and JSON on disk, written whole or not at all.

Arrays are safetensors files (no code runs on loading) with one JSON object in the header. A file is
written next to its place and renamed, so readers never see half of it, and two processes that write the
same file at once leave one complete copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sfumato.core.drafts import beside, writing

Array = npt.NDArray[Any]
HEADER = "sfumato"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, atomically, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = beside(path)
    try:
        with writing(draft), draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Indented JSON; a NaN is an error rather than a file that other programs cannot read."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, Array], facts: Mapping[str, object]) -> None:
    """Arrays by name, and `facts`, plain JSON values."""
    write_bytes(path, as_bytes(arrays, facts))


def as_bytes(arrays: Mapping[str, Array], facts: Mapping[str, object]) -> bytes:
    """The file content that `write_arrays` writes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(contiguous, metadata={HEADER: json.dumps(facts)}))


def read_arrays(path: Path, only: str | None = None) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """The result of `write_arrays`, or None without a complete file: a cache then makes it again.

    With `only`, only the array of that name is read, if it exists.
    """
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})[HEADER])
            names = [name for name in file.keys() if only in (None, name)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, facts
    except (FileNotFoundError, SafetensorError, KeyError, json.JSONDecodeError):
        return None


def digest(*parts: object) -> str:
    """A short name for a combination of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def is_whole(path: Path) -> bool:
    """Whether `read_arrays` would find a file of full length there; reads its header only."""
    try:
        with safe_open(path, framework="np") as file:
            return HEADER in (file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return False
