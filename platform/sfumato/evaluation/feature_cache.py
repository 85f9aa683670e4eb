"""Where features of reference data are kept: a folder, or a place in object storage that machines share.

An entry is written whole or not at all: by rename on a disk, by one upload in object storage, where an object
appears when its upload is complete. Two processes that miss the same entry both compute it, which gives the
same bytes, and the later one replaces the earlier: nobody waits for anybody, and no lock outlives a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load

from sfumato.errors import ConfigError
from sfumato.evaluation.store import Array, as_bytes, read_arrays, write_bytes


class FeatureCache:
    """Arrays by file name, at a path or a URI that pyarrow.fs knows. Raises ConfigError for any other."""

    def __init__(self, place: Path | str) -> None:
        self._remote: fs.FileSystem | None = None
        self._root = str(place)
        if "://" in self._root:
            try:
                filesystem, self._root = fs.FileSystem.from_uri(self._root)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ConfigError(f"evaluate.cache={place}: cannot be opened ({reason})") from error
            self._remote = None if isinstance(filesystem, fs.LocalFileSystem) else filesystem

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one."""
        return Path(self._root) if self._remote is None else None

    def read(self, name: str) -> dict[str, Array] | None:
        """An entry's arrays, or None where there is no whole one."""
        if self._remote is None:
            stored = read_arrays(Path(self._root) / name)
            return stored[0] if stored else None
        try:
            with self._remote.open_input_stream(f"{self._root}/{name}") as stream:
                return load(bytes(stream.read()))
        except (FileNotFoundError, SafetensorError):
            return None
        except OSError as error:
            raise ConfigError(self._unreachable(error)) from error

    def write(self, name: str, arrays: Mapping[str, Array], facts: Mapping[str, object]) -> None:
        """Store an entry; `facts` are plain JSON values."""
        content = as_bytes(arrays, facts)
        if self._remote is None:
            write_bytes(Path(self._root) / name, content)
            return
        try:
            with self._remote.open_output_stream(f"{self._root}/{name}") as stream:
                stream.write(content)
        except OSError as error:
            raise ConfigError(self._unreachable(error)) from error

    def _unreachable(self, error: OSError) -> str:
        return f"evaluate.cache at {self._root} does not answer: {str(error).splitlines()[0]}"
