"""Writes files of a data set: to a local folder, or a URI (s3://, gs://).

Object storage has no rename: a file appears there when all of it has arrived, and the manifest, written last,
makes the files a data set. Uploads outlast an outage as reads do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from sfumato.data.storage.filesystems import explained, filesystem, is_remote, names_below, retried
from sfumato.data.storage.read import PIECE, size_of
from sfumato.errors import DataError

T = TypeVar("T")


def write_bytes(folder: str, name: str, data: bytes | pa.Buffer) -> None:
    """Write a small file, all or nothing. Raises DataError if a remote one cannot be written."""
    found, root = filesystem(folder)
    if is_remote(folder):

        def send() -> None:
            with found.open_output_stream(f"{root}/{name}") as stream:
                stream.write(data)

        _tried(send, folder, name)
        return
    target = Path(root) / name
    draft = target.with_name(f"{target.name}.part")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, target)


@contextlib.contextmanager
def workplace(folder: str) -> Iterator[Path]:
    """A local folder in which to create files: the folder itself, or a scratch one until `publish`."""
    if is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="sfumato-upload-") as scratch:
            yield Path(scratch)
        return
    place = Path(filesystem(folder)[1])
    place.mkdir(parents=True, exist_ok=True)
    yield place


def publish(folder: str, place: Path, names: Sequence[str]) -> None:
    """Bring files of a workplace, in this order, to the folder that it was created for."""
    if is_remote(folder):
        for name in names:
            upload(folder, name, place / name)


def upload(folder: str, name: str, path: Path) -> None:
    """Copy a local file to a remote one. Raises DataError, also if it did not arrive whole."""
    found, root = filesystem(folder)

    def send() -> None:
        with path.open("rb") as source, found.open_output_stream(f"{root}/{name}") as target:
            shutil.copyfileobj(source, target, PIECE)

    _tried(send, folder, name)
    if (arrived := size_of(folder, name)) != path.stat().st_size:
        raise DataError(f"{folder}: {name}: {arrived or 0:,} of {path.stat().st_size:,} bytes arrived")


def remove(folder: str, name: str) -> None:
    """Delete a remote file, if it exists."""

    def delete() -> None:
        found, root = filesystem(folder)
        with contextlib.suppress(FileNotFoundError):
            found.delete_file(f"{root}/{name}")

    if size_of(folder, name) is not None:
        _tried(delete, folder, name)


def remove_tree(folder: str, name: str) -> None:
    """Delete everything below a remote folder."""

    def delete() -> None:
        found, root = filesystem(folder)
        if found.get_file_info(f"{root}/{name}").type == fs.FileType.Directory:
            # Its content is deleted first; Google's client then misses a folder marker that never existed.
            with contextlib.suppress(FileNotFoundError):
                found.delete_dir(f"{root}/{name}")

    _tried(delete, folder, name)


def entries(folder: str, name: str = "") -> list[fs.FileInfo]:
    """Files and folders below a folder at any depth, sorted by path; empty if it does not exist.

    Raises DataError if that cannot be determined.
    """
    found, root = filesystem(folder)
    place = f"{root}/{name}" if name else root
    selector = fs.FileSelector(place, allow_not_found=True, recursive=True)
    listed = _tried(lambda: found.get_file_info(selector), folder, name or "its files")
    # Some stores list a marker object for the folder itself.
    return sorted((info for info in listed if info.path.rstrip("/") != place), key=lambda info: info.path)


def names_in(folder: str) -> set[str]:
    """Names of the files and folders in a folder."""
    found, root = filesystem(folder)
    return set(_tried(lambda: names_below(found, root), folder, "its files"))


def _tried(action: Callable[[], T], folder: str, name: str) -> T:
    try:
        return retried(action, f"{folder}: {name}")
    except OSError as error:
        raise explained(folder, name, error) from error
