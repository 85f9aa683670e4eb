"""Reads files of a data set, wherever it is stored: a local folder, or a URI (file://, s3://, gs://)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import pyarrow as pa
from pyarrow import fs

from sfumato.data.storage.filesystems import check_bucket, explained, filesystem, is_remote, retried

T = TypeVar("T")
PIECE = 8 << 20
"""Bytes per request when a whole file is wanted."""


class File(Protocol):
    """An open file that can be read at any position."""

    def seek(self, position: int, /) -> int | None: ...
    def read(self, nbytes: int = ..., /) -> bytes: ...
    def __enter__(self) -> File: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def size_of(folder: str, name: str) -> int | None:
    """Size of a file in bytes, or None if it does not exist. Raises DataError if that is unknown."""
    found, root = filesystem(folder)
    try:
        info = retried(lambda: found.get_file_info(f"{root}/{name}"), folder)
    except OSError as error:
        raise explained(folder, name, error) from error
    if info.type != fs.FileType.File:
        check_bucket(folder)
        return None
    return int(info.size)


def open_file(folder: str, name: str) -> File:
    """A file opened for random access. Raises DataError if it is missing or may not be read.

    A remote file fetches only the bytes of each `read`, and reads continue after an outage.
    """
    if is_remote(folder):
        return _RemoteFile(folder, name)
    found, root = filesystem(folder)
    try:
        file: File = found.open_input_file(f"{root}/{name}")
        return file
    except OSError as error:
        raise explained(folder, name, error) from error


def read_bytes(folder: str, name: str) -> bytes:
    """The content of a small file."""
    with open_file(folder, name) as file:
        return bytes(file.read())


@contextlib.contextmanager
def local_copy(folder: str, name: str) -> Iterator[Path]:
    """A file on this machine, for callers that need most of it; for a remote file, a temporary copy."""
    if not is_remote(folder):
        with open_file(folder, name):  # which reports in one line why it may not be read
            yield Path(filesystem(folder)[1]) / name
        return
    with tempfile.TemporaryDirectory(prefix="sfumato-copy-") as scratch:
        target = Path(scratch) / name.rpartition("/")[2]
        download(folder, name, target)
        yield target


def download(folder: str, name: str, target: Path) -> None:
    """Copy a file to a local one, piece by piece. Raises DataError, or OSError of the local disk."""
    with open_file(folder, name) as source, target.open("wb") as file:
        while piece := source.read(PIECE):
            file.write(piece)


class _RemoteFile:
    """Ranged reads, each retried on a fresh connection when it fails for a temporary reason."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name, self._position = folder, name, 0
        self._file: pa.NativeFile | None = None
        self._size: int = self._retried(lambda: int(self._opened().size()))

    def seek(self, position: int, /) -> int:
        self._position = position
        return position

    def read(self, nbytes: int = -1, /) -> bytes:
        left = max(self._size - self._position, 0)
        wanted = left if nbytes < 0 else min(nbytes, left)
        data = self._retried(lambda: bytes(self._opened().read_at(wanted, self._position)) if wanted else b"")
        self._position += len(data)
        return data

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _opened(self) -> pa.NativeFile:
        if self._file is None:
            found, root = filesystem(self._folder)
            self._file = found.open_input_file(f"{root}/{self._name}")
        return self._file

    def _retried(self, action: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return action()
            except OSError:
                self._close()
                raise

        try:
            return retried(attempt, f"{self._folder}/{self._name}")
        except OSError as error:
            raise explained(self._folder, self._name, error) from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
