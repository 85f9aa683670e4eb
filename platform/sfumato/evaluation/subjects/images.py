"""Sets of images, possibly from another program: a folder, an archive, packed shards.

They serve as the measured images and as the reference. Images are used unchanged: a set of
another size than the reference is refused, unless the user asks for a resize, which the report names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sfumato.core.batch import DataSpec
from sfumato.data.format.faults import ImageFault, OnError
from sfumato.data.format.images import MAX_PIXELS, opened
from sfumato.data.format.manifest import FILE as MANIFEST
from sfumato.data.format.manifest import file_digest
from sfumato.data.packing.recognition import source_named
from sfumato.data.packing.resizing import pixels_of, upright
from sfumato.data.packing.unpacked import InPlace
from sfumato.errors import DataError
from sfumato.evaluation.references.reference import Captioned, PackedReference, Reference, every_one
from sfumato.evaluation.statistics import UInt8Array
from sfumato.evaluation.store import digest
from sfumato.evaluation.subjects.image_set import ImageBlock, ImageSet
from sfumato.sampling.output import LINES

Resize = Literal["bicubic", "lanczos", "nearest"]
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".md", ".yaml")
"""Files that may accompany images: captions, metadata, a licence."""


def open_images(place: str, on_error: OnError = "fail") -> Reference:
    """The images at `place`: packed shards (a folder or URI with manifest.json), a folder that
    `sfumato sample` wrote, a folder of image files, or another file that `sfumato pack` takes.

    Raises DataError in one line for files that are missing, mixed, damaged or not images.
    """
    if "://" in place or (Path(place) / MANIFEST).is_file():
        return PackedReference(place, on_error)
    path = Path(place).expanduser()
    if not path.exists() and place != "digits":
        raise DataError(f"{place}: no such file or folder")
    if path.is_dir():
        _refuse_strays(path)
        if (path / LINES).is_file():
            return _SampleFolder(path)
    return _Opened(path if path.exists() else None, InPlace(source_named(place)))


def check_same_kind(made: DataSpec, real: DataSpec, *, what: str) -> None:
    """Raises DataError if images of two sets differ in size or channels."""
    if made.shape != real.shape:
        mend = (
            "sizes are never adapted silently: pass --resize bicubic to resize them to the reference's size"
            if made.channels == real.channels
            else f"pack them with channels={real.channels} first"
        )
        raise DataError(f"{what} {kind_of(made)} images but the reference holds {kind_of(real)}: {mend}")


def kind_of(spec: DataSpec) -> str:
    """`32x32 3-channel`, `28x28 grey`."""
    colours = "grey" if spec.channels == 1 else f"{spec.channels}-channel"
    return f"{spec.width}x{spec.height} {colours}"


class Resized(ImageSet):
    """Another set's images at another size, by Pillow's antialiased filters on 8 bits."""

    def __init__(self, images: Reference, height: int, width: int, method: Resize) -> None:
        self._images, self._method = images, method
        self.about = f"{method} from {images.spec.width}x{images.spec.height}"
        self.spec = replace(images.spec, height=height, width=width)
        self.size = images.size
        self.digest = digest(images.digest, "resize", height, width, method)
        self.captioned = isinstance(images, Captioned) and images.captioned

    def _read(self, first: int, stop: int) -> ImageBlock:
        images, label_N = self._images.read(first, stop)
        return np.stack([self._resized(image) for image in images]), label_N

    def captions(self, first: int, stop: int) -> list[str]:
        """Those of the other set."""
        assert isinstance(self._images, Captioned)
        return self._images.captions(first, stop)

    def _resized(self, image_HWC: UInt8Array) -> UInt8Array:
        grey = image_HWC.shape[2] == 1
        picture = Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC)
        pixels = np.asarray(picture.resize((self.spec.width, self.spec.height), _FILTERS[self._method]))
        return pixels[:, :, None] if grey else pixels


class _Opened(ImageSet):
    """A source of `sfumato pack` read in place. Its digest covers names and bytes of all files."""

    def __init__(self, path: Path | None, source: InPlace) -> None:
        if source.faults:
            raise DataError(f"{source.faults[0]} (repair or remove it)")
        info = source.image
        self._source = source
        self.spec = DataSpec(info.channels, info.height, info.width, tuple(source.classes))
        self.size = len(source.keys)
        self.digest = digest("files", source.description if path is None else content_digest(path))
        self._about = source.description
        self.captioned = any(self._caption(row) for row in (0, self.size - 1))

    def _read(self, first: int, stop: int) -> ImageBlock:
        records = []
        for index in range(first, stop):
            try:
                records.append(self._source.read(index))
            except ImageFault as fault:
                raise DataError(f"{self._source.keys[index]}: {fault} (repair or remove it)") from None
        labels = [label for _, label in records if label is not None]
        images = np.stack([pixels_HWC for pixels_HWC, _ in records])
        return images, np.array(labels, np.int64) if self.spec.classes else None

    def captions(self, first: int, stop: int) -> list[str]:
        """The captions of images `first` to `stop` - 1. Raises DataError for an image without one."""
        rows = range(first, min(stop, self.size))
        names = [self._source.keys[row] for row in rows]
        return every_one([self._caption(row) for row in rows], names, self._about)

    def _caption(self, row: int) -> str | None:
        try:
            return self._source.caption(row)
        except ImageFault as fault:
            raise DataError(f"{self._source.keys[row]}: {fault} (repair or remove it)") from None


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    label: int | None
    name: str | None


class _SampleFolder(ImageSet):
    """Samples of `sfumato sample`: the images that samples.jsonl lists, with the requested classes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        lines = [_parsed(folder, text) for text in (folder / LINES).read_text("utf-8").splitlines() if text]
        if not lines:
            raise DataError(f"{folder / LINES} lists no image")
        self._lines = lines
        first = self._pixels(lines[0])
        height, width, channels = first.shape
        self.spec = DataSpec(channels, height, width, _class_names(folder, lines))
        self.size = len(lines)
        self.digest = digest("samples", content_digest(folder))

    def _read(self, first: int, stop: int) -> ImageBlock:
        """With the requested classes."""
        lines = self._lines[first:stop]
        images = [self._pixels(line) for line in lines]
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise DataError(f"{self._folder / lines[odd].file} is of another size than {lines[0].file}")
        labels = [line.label for line in lines if line.label is not None]
        return np.stack(images), np.array(labels, np.int64) if self.spec.classes else None

    def _pixels(self, line: _Line) -> UInt8Array:
        path = self._folder / line.file
        try:
            with opened(path, MAX_PIXELS) as image:
                return pixels_of(upright(image, 1 if image.mode == "L" else 3))
        except ImageFault as fault:
            raise DataError(f"{path}: {fault}") from None


def _parsed(folder: Path, text: str) -> _Line:
    try:
        line = json.loads(text)
        found = _Line(str(line["file"]), line["label"], line["class"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / LINES} is damaged at {text[:60]!r}: draw the samples again") from None
    if Path(found.file).name != found.file:
        raise DataError(f"{folder / LINES} names {found.file!r}, which is not in its folder")
    return found


def _class_names(folder: Path, lines: Sequence[_Line]) -> tuple[str, ...]:
    labelled = {line.label: line.name for line in lines if line.label is not None}
    if not labelled:
        return ()
    if len(labelled) < max(labelled) + 1:
        raise DataError(
            f"{folder} holds samples of some classes only ({len(labelled)} of {max(labelled) + 1} or more): "
            "draw samples of all, without --label"
        )
    return tuple(str(labelled[label]) for label in sorted(labelled))


def content_digest(path: Path) -> str:
    """sha256 over the names and bytes of a file, or of all files in a folder."""
    if path.is_file():
        return file_digest(str(path.parent), path.name)
    total = hashlib.sha256()
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            total.update(f"{file.relative_to(path).as_posix()}\0{file_digest(folder, name)}\n".encode())
    return total.hexdigest()


def _refuse_strays(folder: Path) -> None:
    """Refuses a folder with other files among the images: it is probably not the intended one."""
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if not name.startswith(".") and not name.lower().endswith(_IMAGES + _BESIDE):
                raise DataError(
                    f"{folder}: {Path(place, name).relative_to(folder)} is not an image "
                    f"({', '.join(_IMAGES)}): name a folder of images, or move it away"
                )
