"""Where a result is written before it gets its name: beside it, hidden, with modes by the user's umask."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(path: Path) -> Path:
    """A hidden place in the same folder, which nothing has: what is written there is renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def result_of(path: str) -> str:
    """What is written at a place of `beside`: the name that the user knows. Other paths as they are."""
    return re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]{8}(?=/|$)", r"\1\2", path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all. Raises OSError that names it."""
    partial = beside(path)
    try:
        with writing(path):
            partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def folder_beside(path: Path) -> Path:
    """The same, as an empty folder. Those of `tempfile` ignore the umask."""
    draft = beside(path)
    draft.mkdir()
    return draft


_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NUMBER = re.compile(r"(?:\[Errno|os error) (\d+)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`: an OSError that leaves it is one that names a file.

    Writing to an open file on a full disk names none; `shutil.copytree` and safetensors have errors of their
    own, in which the system's is a text.
    """
    try:
        yield
    except shutil.Error as error:
        _, file, reason = error.args[0][0]
        raise _of_the_system(str(reason), str(file)) from error
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if type(error).__name__ != "SafetensorError" or not _NUMBER.search(str(error)):
            raise
        raise _of_the_system(str(error), str(path)) from error


def _of_the_system(reason: str, file: str) -> OSError:
    """The error that a text tells of."""
    found = _NUMBER.search(reason)
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), file)
