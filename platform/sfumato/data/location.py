"""Where a data set lies: a local folder, or a URI that pyarrow.fs knows (s3://, gs://, ...)."""

from __future__ import annotations

import os
from functools import lru_cache

import pyarrow as pa
from pyarrow import fs

from sfumato.errors import DataError


@lru_cache(maxsize=16)
def _filesystem(folder: str) -> tuple[fs.FileSystem, str]:
    if "://" not in folder:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(folder))
    try:
        filesystem, root = fs.FileSystem.from_uri(folder)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{folder}: not a place that can be read ({_first_line(error)})") from error
    return filesystem, root.rstrip("/")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def size_of(folder: str, name: str) -> int | None:
    """Bytes of a file, or None where there is none."""
    filesystem, root = _filesystem(folder)
    info = filesystem.get_file_info(f"{root}/{name}")
    return int(info.size) if info.type == fs.FileType.File else None


def open_file(folder: str, name: str) -> pa.NativeFile:
    """A file opened for random access. Raises DataError where it is missing or may not be read."""
    filesystem, root = _filesystem(folder)
    try:
        return filesystem.open_input_file(f"{root}/{name}")
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else _first_line(error)
        raise DataError(f"{folder}: {name}: {reason}") from error


def read_bytes(folder: str, name: str) -> bytes:
    """The whole of a small file."""
    with open_file(folder, name) as file:
        return bytes(file.read())
