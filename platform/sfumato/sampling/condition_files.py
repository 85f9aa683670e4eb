"""Conditions from files: images, arrays, and prompts."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.columns import Kind
from sfumato.core.conditions import Condition, Listed, Rows
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import MAX_PIXELS, opened
from sfumato.data.packing.resizing import look, pixels_of, upright
from sfumato.errors import ConfigError
from sfumato.sampling.pixels import from_uint8

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ImageFiles:
    """Image files, by path or as their bytes: headers are read at once, pixels on request.

    Raises ConfigError, in one line, for a file that is missing, is not an image, or differs in size.
    """

    kind: Kind = "image"
    classes = 0

    def __init__(self, name: str, files: Sequence[Path | bytes]) -> None:
        self._files = list(files)
        shapes = [_shape(name, file) for file in self._files]
        for file, shape in zip(self._files, shapes, strict=True):
            if shape != shapes[0]:
                raise ConfigError(
                    f"{name}: {_called(file)} is {_said(shape)} and {_called(self._files[0])} is "
                    f"{_said(shapes[0])}; give images of one size and one colour mode"
                )
        self.shape: tuple[int, ...] = shapes[0] if shapes else ()

    @classmethod
    def at(cls, name: str, places: Sequence[str]) -> ImageFiles:
        """The files; a folder stands for all its image files in the order of their names."""
        paths: list[Path] = []
        for place in map(Path, places):
            if not place.is_dir():
                paths.append(place)
                continue
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGES)
            if not inside:
                raise ConfigError(f"{name}: {place} holds no image ({', '.join(IMAGES)})")
            paths += inside
        return cls(name, paths)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1]."""
        pixels = {row: self._pixels(self._files[row]) for row in set(rows)}
        return from_uint8(np.stack([pixels[row] for row in rows]))

    def told(self, row: int) -> Any:
        """The file, or the checksum of bytes."""
        file = self._files[row]
        return {"sha256": hashlib.sha256(file).hexdigest()} if isinstance(file, bytes) else str(file)

    def _pixels(self, file: Path | bytes) -> NDArray[np.uint8]:
        try:
            with opened(io.BytesIO(file) if isinstance(file, bytes) else file, MAX_PIXELS) as image:
                return pixels_of(upright(image, 1 if self.shape[0] == 1 else 3))
        except (ImageFault, OSError) as fault:
            raise ConfigError(f"{_called(file)}: {fault}") from None


def _shape(name: str, file: Path | bytes) -> tuple[int, int, int]:
    if isinstance(file, Path) and not file.is_file():
        raise ConfigError(f"{name}: {file}: no such file or folder")
    try:
        found = look(file, MAX_PIXELS)
    except ImageFault as fault:
        raise ConfigError(f"{name}: {_called(file)}: {fault}") from None
    return (1 if found.grey else 3, found.height, found.width)


def _called(file: Path | bytes) -> str:
    return "the image" if isinstance(file, bytes) else str(file)


def _said(shape: Sequence[int]) -> str:
    return f"{'grey' if shape[0] == 1 else 'RGB'} {shape[1]}x{shape[2]}"


def array_file(condition: Condition, path: Path) -> Rows:
    """A .npy file with one row, or with rows along its first axis. Raises ConfigError."""
    if path.suffix != ".npy" or not path.is_file():
        raise ConfigError(f"{condition.name}: a {condition.kind} needs a .npy file, got {path}")
    try:
        return Listed(condition.kind, array_rows(condition, np.load(path, allow_pickle=False)))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{condition.name}: {path} cannot be read as an array ({error})") from None


def array_rows(condition: Condition, array: NDArray[Any]) -> Tensor:
    """Rows [N, *shape] of one row or of several; float32 for a vector or a camera. Raises ConfigError."""
    if array.shape == condition.shape:
        array = array[None]
    try:
        values = torch.from_numpy(np.ascontiguousarray(array))
    except TypeError:
        raise ConfigError(
            f"{condition.name}: got numbers of type {array.dtype}; give float32 or int64"
        ) from None
    return values if condition.kind == "array" else values.float()


def read_prompts(path: Path) -> Mapping[str, Sequence[Any]]:
    """`prompt` and, if the file has them, `negative` and `label`, each with one entry per prompt.

    A text file has a prompt on every non-empty line; a .jsonl file has an object on every line.
    Raises ConfigError naming the line.
    """
    if path.suffix in _TABLES:
        raise ConfigError(
            f"--prompts {path}: {path.suffix} is not read; write a prompt on each line of a .txt file, or an "
            "object on each line of a .jsonl file"
        )
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {path}: is not text in UTF-8 ({error.reason})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not numbered:
        raise ConfigError(f"--prompts {path}: holds no prompt")
    if path.suffix != ".jsonl":
        return {"prompt": [line for _, line in numbered]}
    return _columns(path, [(number, _parsed(path, number, line)) for number, line in numbered])


_TABLES = (".csv", ".tsv", ".json", ".yaml", ".yml", ".parquet")
"""Whose lines are no prompts."""
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "prompt": lambda value: isinstance(value, str),
    "negative": lambda value: isinstance(value, str),
    "label": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
}


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--prompts {path}: line {number} is not JSON ({error})") from None
    fields = found if isinstance(found, dict) else {}
    wrong = [name for name, value in fields.items() if name not in _FIELDS or not _FIELDS[name](value)]
    if wrong or "prompt" not in fields:
        which = f", field {wrong[0]!r}" if wrong else ""
        raise ConfigError(
            f"--prompts {path}: line {number}{which}: wanted an object such as "
            '{"prompt": "a red boat", "negative": "blurry", "label": 3}'
        )
    return fields


def _columns(path: Path, lines: Sequence[tuple[int, dict[str, Any]]]) -> Mapping[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = {"prompt": [line["prompt"] for _, line in lines]}
    if any("negative" in line for _, line in lines):
        found["negative"] = [line.get("negative", "") for _, line in lines]
    if any("label" in line for _, line in lines):
        for number, line in lines:
            if "label" not in line:
                raise ConfigError(f"--prompts {path}: line {number} has no label, but others have one")
        found["label"] = [line["label"] for _, line in lines]
    return found
