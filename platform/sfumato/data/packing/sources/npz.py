"""Images from the arrays of an .npz file, whose headers are checked before any array is loaded."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sfumato.data.format.images import U8
from sfumato.data.packing import source_files
from sfumato.data.packing.array_source import ArraySource
from sfumato.data.packing.source import MAX_CLASSES, Opening, Source, SourceConfig, Words
from sfumato.errors import DataError

_IMAGES = ("image", "images", "x_train", "x", "arr_0")
_LABELS = ("label", "labels", "y_train", "y", "arr_1")


class NpzSource(SourceConfig):
    """Arrays in a common exchange format: images uint8 [N,H,W] or [N,H,W,C], labels [N]."""

    FILES: ClassVar[tuple[str, ...]] = (".npz",)

    kind: Literal["npz"] = Field("npz", description="Arrays of an .npz file.")
    path: str = Field(description="The file.")
    images: str | None = Field(
        None, description=f"Name of the array of images; null takes the first of {', '.join(_IMAGES)}."
    )
    labels: str | None = Field(
        None,
        description=f"Name of the array of labels; null takes the first of {', '.join(_LABELS)}, "
        "and without one the set has no labels.",
    )
    classes: Words = Field((), description="Names of the labels in order; empty: their numbers.")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def open(self, opening: Opening) -> Source:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        headers = _headers(path)
        images = _chosen(path, headers, self.images, _IMAGES, "images")
        labels = _chosen(path, headers, self.labels, _LABELS, "labels", optional=True)
        assert images is not None
        _check_images(path, images, headers[images], opening.max_pixels)
        arrays = _load(path, [images] + ([labels] if labels else []))
        labels_N = self._labels(path, labels, arrays) if labels else None
        if labels_N is not None and len(labels_N) != len(arrays[images]):
            raise DataError(
                f"{path}: {len(labels_N):,} labels in {labels} for {len(arrays[images]):,} images in {images}"
            )
        pixels_NHWC: U8 = arrays[images]
        pixels_NHWC = pixels_NHWC[..., None] if pixels_NHWC.ndim == 3 else pixels_NHWC
        classes, description = self._names(labels_N), f"{path.name}, array {images}"
        return ArraySource(pixels_NHWC, labels_N, classes, description, source_files.state(path))

    def _names(self, labels_N: NDArray[np.int64] | None) -> tuple[str, ...]:
        if labels_N is None:
            return ()
        return self.classes or tuple(str(label) for label in range(int(labels_N.max()) + 1))

    def _labels(self, path: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        values = arrays[name]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}; "
                "labels must be integers, one per image"
            )
        limit = len(self.classes) or MAX_CLASSES
        wrong = np.flatnonzero((values < 0) | (values >= limit))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{path}: {name}[{row}]: label {values[row]} is out of range 0..{limit - 1}")
        return values.astype(np.int64)


Header = tuple[tuple[int, ...], "np.dtype[Any]"]


def _headers(path: Path) -> dict[str, Header]:
    """Shape and type of every array, read from the headers alone; object arrays are left to `_check`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _header(archive.open(name)) for name in names}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an .npz file: {error}") from error


def _header(file: IO[bytes]) -> Header:
    with file:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _chosen(
    path: Path,
    headers: Mapping[str, Header],
    asked: str | None,
    usual: Sequence[str],
    what: str,
    optional: bool = False,
) -> str | None:
    present = ", ".join(sorted(headers)) or "nothing"
    if asked is not None and asked not in headers:
        raise DataError(f"{path}: no array {asked!r} for the {what}; it holds {present}")
    found = asked or next((name for name in usual if name in headers), None)
    if found is None and not optional:
        raise DataError(f"{path}: no array of {what} under a usual name; it holds {present}: set `{what}`")
    if found is not None and headers[found][1].hasobject:
        raise DataError(f"{path}: {found} holds pickled objects, which are never loaded; save plain arrays")
    return found


def _check_images(path: Path, name: str, header: Header, max_pixels: int) -> None:
    shape, dtype = header
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(f"{path}: {name} has shape {shape}; wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if dtype != np.uint8:
        raise DataError(f"{path}: {name} is {dtype}; wanted uint8 in 0..255")
    if 0 in shape:
        raise DataError(f"{path}: {name} has shape {shape}: no images found")
    if shape[1] * shape[2] > max_pixels:
        raise DataError(f"{path}: {name}: {shape[2]}x{shape[1]} is more than max_pixels={max_pixels:,}")


def _load(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from error


COMPONENT = NpzSource
