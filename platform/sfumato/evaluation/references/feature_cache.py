"""Where features of reference data are kept: a folder, or a place in object storage that machines share.

An entry is written whole or not at all: by rename on a disk, by one upload in object storage, where an object
appears when its upload is complete. Two processes that miss the same entry both compute it, with the same
bytes, and the later one replaces the earlier: no process waits for another, and no lock outlives a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load

from sfumato.data.storage.filesystems import explained, filesystem, retried
from sfumato.evaluation.store import Array, as_bytes, read_arrays, write_bytes

T = TypeVar("T")


class FeatureCache:
    """Arrays by file name, at a path or a URI. Raises DataError for an unreachable place."""

    def __init__(self, place: Path | str) -> None:
        self._place = str(place)
        found, self._root = filesystem(self._place)
        self._remote: fs.FileSystem | None = None if isinstance(found, fs.LocalFileSystem) else found

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        return Path(self._root) if self._remote is None else None

    def read(self, name: str) -> dict[str, Array] | None:
        """An entry's arrays, or None if no complete one exists."""
        if self._remote is None:
            stored = read_arrays(Path(self._root) / name)
            return stored[0] if stored else None
        try:
            return load(self._patiently(name, lambda: self._download(name)))
        except (FileNotFoundError, SafetensorError):
            return None

    def write(self, name: str, arrays: Mapping[str, Array], facts: Mapping[str, object]) -> None:
        """Store an entry; `facts` are plain JSON values."""
        content = as_bytes(arrays, facts)
        if self._remote is None:
            write_bytes(Path(self._root) / name, content)
        else:
            self._patiently(name, lambda: self._upload(name, content))

    def _download(self, name: str) -> bytes:
        assert self._remote is not None
        with self._remote.open_input_stream(f"{self._root}/{name}") as stream:
            return bytes(stream.read())

    def _upload(self, name: str, content: bytes) -> None:
        assert self._remote is not None
        with self._remote.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(content)

    def _patiently(self, name: str, action: Callable[[], T]) -> T:
        """The action's result; a missing entry stays FileNotFoundError, other errors become one line."""
        try:
            return retried(action, f"{self._place}: {name}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explained(self._place, name, error) from error
