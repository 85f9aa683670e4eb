"""Shared by sources over files: names of keys, the state of a file, classes from names, and sidecars."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format.column_sources import ColumnSource, WeightedTexts
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.samples import parse_meta
from sfumato.data.packing.further import loaded_npy
from sfumato.data.packing.source import I64, MAX_CLASSES, NO_LABEL
from sfumato.errors import DataError

Label = int | str | None
_MAX_SIDECAR = 1 << 22
_MAX_ARRAY = 1 << 28


def state(path: Path) -> str:
    """Changes when the file is written again; cheap enough for a million files."""
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size}-{found.st_mtime_ns}"


def unique_keys(names: Iterable[str]) -> list[str]:
    """Keys from names. A dot would end a WebDataset key, so it becomes `_`; duplicates are numbered."""
    keys: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = name.replace(".", "_")
        key, number = stem, 2
        while key in taken:
            key, number = f"{stem}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def without_suffix(file: str) -> str:
    return os.path.splitext(file)[0]


def numbered(labels: Sequence[Label], names: Sequence[str], where: str) -> tuple[I64 | None, tuple[str, ...]]:
    """Class numbers int64 [N] and class names from labels that are all numbers, or all names.

    Numbers index `names`, or name themselves if there are none; names are numbered in their order in
    `names`, or sorted. Raises DataError for a mixture and for labels that `names` does not cover.
    """
    given = [label for label in labels if label is not None]
    if not given:
        return None, ()
    if all(isinstance(label, int) for label in given):
        return _from_numbers(labels, tuple(names), where)
    if not all(isinstance(label, str) for label in given):
        raise DataError(f"{where}: some labels are numbers and some are names; make them one kind")
    classes = tuple(names) or tuple(sorted({str(label) for label in given}))
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{where}: {len(classes):,} different labels: is that column a class at all?")
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = next((label for label in given if label not in number_of), None)
    if unknown is not None:
        raise DataError(f"{where}: label {unknown!r} is not among the classes given")
    return np.array([number_of.get(str(label), NO_LABEL) for label in labels], np.int64), classes


def _from_numbers(labels: Sequence[Label], names: tuple[str, ...], where: str) -> tuple[I64, tuple[str, ...]]:
    limit = len(names) or MAX_CLASSES
    for row, label in enumerate(labels):
        if label is not None and not 0 <= int(label) < limit:
            raise DataError(f"{where}: sample {row}: label {label} is out of range 0..{limit - 1}")
    numbers = np.array([NO_LABEL if label is None else int(label) for label in labels], np.int64)
    return numbers, names or tuple(str(number) for number in range(int(numbers.max()) + 1))


def inside(root: Path, name: str) -> Path:
    """The file that a listing names below `root`. Raises ImageFault for a name that leads elsewhere."""
    path = (root / name).resolve()
    if not name or Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
        raise ImageFault("its name leads out of the folder")
    return path


def check_regular(root: Path, path: Path, what: str = "") -> None:
    """Raises ImageFault for a link out of the folder `root`, and for pipes, devices and sockets.

    Opening a pipe would wait for ever.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            if not path.resolve().is_relative_to(root.resolve()):
                raise ImageFault(f"{what}is a link that leads out of the folder")
            mode = path.stat().st_mode
    except OSError:
        return  # reading it reports what is wrong
    if not stat.S_ISREG(mode):
        raise ImageFault(f"{what}is not a regular file")


def sidecar_text(root: Path, path: Path) -> str | None:
    """UTF-8 text next to an image below `root`; None if the file does not exist. Raises ImageFault."""
    raw = _sidecar(root, path, "caption")
    try:
        return None if raw is None else raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ImageFault(f"its caption {path.name} cannot be read as UTF-8 text") from error


def sidecar_meta(root: Path, path: Path) -> dict[str, Any] | None:
    """A JSON object next to an image below `root`; None if the file does not exist. Raises ImageFault."""
    raw = _sidecar(root, path, "metadata")
    return None if raw is None else parse_meta(raw)


def further(root: Path, name: str, source: ColumnSource, path: Path) -> Path | WeightedTexts | NDArray[Any]:
    """A further column from its own file: an image, a text or an npy file. Raises ImageFault."""
    check_regular(root, path, f"its {name} {path.name} ")
    if source.kind == "image":
        return path
    if source.kind == "text":
        return WeightedTexts([sidecar_text(root, path) or ""])
    try:
        if path.stat().st_size > _MAX_ARRAY:
            raise ImageFault(f"its {name} {path.name} has more than {_MAX_ARRAY:,} bytes")
        return loaded_npy(name, path.read_bytes())
    except OSError as error:
        raise ImageFault(f"its {name} {path.name} cannot be read: {error.strerror}") from error


def _sidecar(root: Path, path: Path, what: str) -> bytes | None:
    check_regular(root, path, f"its {what} {path.name} ")
    try:
        if path.stat().st_size > _MAX_SIDECAR:
            raise ImageFault(f"its {what} {path.name} has more than {_MAX_SIDECAR:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageFault(f"its {what} {path.name} cannot be read: {error.strerror}") from error
