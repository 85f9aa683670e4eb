"""Reading and writing tensors with torch.distributed.checkpoint, without executing what a file says.

The format's index (`.metadata`) is a pickle. It is read here by an unpickler that knows the handful of
classes such an index consists of and refuses every other, and no entry but tensors is accepted: tensors
are read by torch with `weights_only`.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sfumato.errors import CheckpointError

# Said at every save of a single process, where it is what we asked for.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

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


class _SafeReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _IndexUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, CheckpointError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path} is not the index of a checkpoint")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise CheckpointError(f"{path}: entry {name!r} is no tensor: refused")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def write(
    state: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None, *, distributed: bool
) -> None:
    """Write this rank's part of the state; replicated tensors are written once.

    Raises CheckpointError on every rank when any rank could not write.
    """
    writer = FileSystemWriter(folder, sync_files=True, overwrite=True)
    try:
        save(state, storage_writer=writer, process_group=group, no_dist=not distributed)
    except CheckpointException as error:
        causes = [f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()]
        raise CheckpointError(causes[0] if causes else str(error)) from error


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, whole and on CPU, read when they are asked for.

    A strategy takes them one after another, so that a model which no rank could hold can be loaded. Those
    that were written together are read together, a few megabytes at a time. Raises CheckpointError for an
    index that is not one, and for files that cannot be read.
    """

    def __init__(self, folder: Path, *, group_bytes: int = 64 << 20) -> None:
        self._folder = folder
        entries = _SafeReader(folder).read_metadata().state_dict_metadata
        self._entries = {
            name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in self._entries.items()}
        self._groups: dict[str, int] = {}
        size, number = 0, 0
        for name, entry in self._entries.items():
            self._groups[name] = number
            size += entry.size.numel() * entry.properties.dtype.itemsize
            if size >= group_bytes:
                size, number = 0, number + 1
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})

    def __getitem__(self, name: str) -> Tensor:
        group = self._groups[name]
        if self._held[0] != group:
            self._held = (-1, {})  # given up before the next is read
            self._held = (group, self._read([n for n, g in self._groups.items() if g == group]))
        return self._held[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        state: dict[str, Any] = {}
        for name in names:
            entry = self._entries[name]
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        try:
            load(state, storage_reader=_SafeReader(self._folder), no_dist=True)
        except CheckpointException as error:
            causes = [str(cause) for cause, _ in error.failures.values()]
            raise CheckpointError(
                f"{self._folder} cannot be read: {causes[0] if causes else error}"
            ) from error
        return state


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors, whole, on CPU. Raises CheckpointError for an index that is not one."""
    return dict(Stored(folder, group_bytes=1 << 62))
