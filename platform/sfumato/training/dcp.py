"""Reads and writes tensors with torch.distributed.checkpoint, without executing code from a file.

The format's index (`.metadata`) is a pickle. The unpickler here knows only the handful of classes that
make up such an index and refuses all others. Only entries that are tensors are accepted; torch reads them
with `weights_only` (`training.stored_chunks`).
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from sfumato.errors import CheckpointError
from sfumato.training.stored_chunks import read_rows

# A single process would warn at every save, although this is intended.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

INDEX = ".metadata"
Open = Callable[[str], BinaryIO]
"""Opens one of a checkpoint's files by name, for random access."""

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"its index names {module}.{name}, which no checkpoint needs: refused")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows `first .. first + rows - 1` of a tensor, as `length` bytes at `offset` in a file."""

    first: int
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1


def write(
    state: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None, *, distributed: bool
) -> None:
    """Write this rank's part of the state; replicated tensors are written once.

    Raises CheckpointError on every rank if any rank could not write.
    """
    writer = FileSystemWriter(folder, sync_files=True, overwrite=True)
    try:
        save(state, storage_writer=writer, process_group=group, no_dist=not distributed)
    except CheckpointException as error:
        causes = [f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()]
        raise CheckpointError(causes[0] if causes else str(error)) from error


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, on CPU, read on demand: whole, or some of their rows.

    A strategy takes them one after another, so it can load a model that no rank could hold, and only the
    bytes of the requested rows are read. Raises CheckpointError for an invalid index and for unreadable
    files.
    """

    def __init__(self, open_file: Open, about: str) -> None:
        self._open = open_file
        self._about = about
        index = _read_index(open_file, f"{about}/{INDEX}")
        self._entries = {
            name: entry
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._chunks = {name: _chunks(name, entry, index) for name, entry in self._entries.items()}
        self.shapes = {name: tuple(entry.size) for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        whole = self.rows(name, 0, shape[0] if shape else 1)
        return whole if shape else whole.reshape(())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` (exclusive) along the first dimension, as many as exist."""
        shape, dtype = self.shapes[name] or (1,), self._entries[name].properties.dtype
        stop = max(start, min(stop, shape[0]))
        found = torch.empty((stop - start, *shape[1:]), dtype=dtype)
        for chunk in self._chunks[name]:
            first, last = max(start, chunk.first), min(stop, chunk.first + chunk.rows)
            if first < last:
                found[first - start : last - start] = self._read(chunk, dtype, first, last)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, chunk: _Chunk, dtype: torch.dtype, first: int, last: int) -> Tensor:
        span = (first - chunk.first, last - chunk.first)
        try:
            with self._open(chunk.file) as file:
                return read_rows(file, chunk.offset, chunk.length, chunk.shape or (1,), dtype, span)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self._about}/{chunk.file} is missing") from error
        except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self._about}/{chunk.file} cannot be read: {error}") from error


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors, whole, on CPU. Raises CheckpointError for an invalid index."""
    return dict(Stored(lambda name: (folder / name).open("rb"), str(folder)))


def _read_index(open_file: Open, about: str) -> Metadata:
    try:
        with open_file(INDEX) as file:
            index = _IndexUnpickler(io.BytesIO(file.read())).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{about} is missing") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, CheckpointError) as error:
        raise CheckpointError(f"{about} cannot be read: {error}") from error
    if not isinstance(index, Metadata):
        raise CheckpointError(f"{about} is not the index of a checkpoint")
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{about}: entry {name!r} is not a tensor: refused")
    return index


def _chunks(name: str, entry: TensorStorageMetadata, index: Metadata) -> list[_Chunk]:
    """The location of a tensor's parts; this package cuts tensors only along their first dimension."""
    found = []
    for chunk in entry.chunks:
        first = chunk.offsets[0] if chunk.offsets else 0
        if any(chunk.offsets[1:]) or tuple(chunk.sizes[1:]) != tuple(entry.size[1:]):
            raise CheckpointError(f"entry {name!r} is cut along another dimension than its first")
        place = index.storage_data[MetadataIndex(name, chunk.offsets)]
        if place.transform_descriptors or Path(place.relative_path).name != place.relative_path:
            raise CheckpointError(
                f"entry {name!r} is not stored unchanged in a file next to the index: refused"
            )
        found.append(_Chunk(first, tuple(chunk.sizes), str(place.relative_path), place.offset, place.length))
    return found
