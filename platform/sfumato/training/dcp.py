"""Reading and writing tensors with torch.distributed.checkpoint, without executing what a file says.

The format's index (`.metadata`) is a pickle. It is read here by an unpickler that knows the handful of
classes such an index consists of and refuses every other, and no entry but tensors is accepted: tensors
are read by torch with `weights_only`.
"""

from __future__ import annotations

import pickle
import warnings
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


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors, whole, on CPU. Raises CheckpointError for an index that is not one."""
    reader = _SafeReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)  # the reader lets no other pass
    }
    try:
        load(state, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        causes = [str(cause) for cause, _ in error.failures.values()]
        raise CheckpointError(f"{folder} cannot be read: {causes[0] if causes else error}") from error
    return state
