"""Images from a folder: class subfolders become labels, a `.txt` beside an image becomes its caption."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from sfumato.data.faults import Fault, ImageFault
from sfumato.data.images import Channels, check_size, fitted, is_grey, opened, upright_size
from sfumato.data.manifest import ImageInfo
from sfumato.data.sources import Record, Source, SourceConfig
from sfumato.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class FolderSource(SourceConfig):
    """A folder of images, at any depth."""

    kind: Literal["folder"] = Field("folder", description="A folder of image files.")
    path: str = Field(description="The folder.")
    size: int | None = Field(
        None, ge=1, description="Scale and centre-crop to a square of this size; null keeps every pixel."
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="1 grey, 3 RGB; auto takes what the files have and refuses a mixture."
    )
    labels: Literal["subfolders", "none"] = Field(
        "subfolders", description="Whether the names of the subfolders are the classes."
    )

    @property
    def name(self) -> str:
        return Path(self.path).expanduser().resolve().name

    def open(self, max_pixels: int) -> Source:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        files = sorted(_image_files(root))
        if not files:
            raise DataError(f"{root}: no images found (looked for {' '.join(_SUFFIXES)} at any depth)")
        classes = _classes(root, files) if self.labels == "subfolders" else ()
        looks, faults = _look(root, files, self.size, max_pixels)
        if not looks:
            raise DataError(f"no usable image among {len(files):,}; the first: {faults[0]}")
        channels = self.channels if self.channels != "auto" else _common_channels(root, looks)
        height, width = (self.size, self.size) if self.size else _common_size(root, looks)
        image = ImageInfo(channels=channels, height=height, width=width)
        return _Folder(root, [look.file for look in looks], image, classes, self.size, faults, max_pixels)


class _Folder:
    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        image: ImageInfo,
        classes: tuple[str, ...],
        size: int | None,
        faults: Sequence[Fault],
        max_pixels: int,
    ) -> None:
        self._root, self._files, self._size, self._max_pixels = root, files, size, max_pixels
        self._label_of = {name: label for label, name in enumerate(classes)}
        self.image, self.classes, self.faults = image, classes, faults
        self.keys = _keys(files)
        self.description = f"folder {root.resolve().name}" + (f", {size}x{size}" if size else "")

    def read(self, index: int) -> Record:
        file = self._files[index]
        with opened(self._root / file, self._max_pixels) as image:
            pixels_HWC = fitted(image, self.image.channels, self._size)
        label = self._label_of[Path(file).parts[0]] if self.classes else None
        return Record(pixels_HWC, label, _caption(self._root / file))


@dataclass(frozen=True, slots=True)
class _Look:
    """What the header of an image file says."""

    file: str
    grey: bool
    width: int
    height: int


def _image_files(root: Path) -> Iterable[str]:
    """Paths relative to `root`; hidden files and folders are not looked at."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _classes(root: Path, files: Sequence[str]) -> tuple[str, ...]:
    """Sorted names of the first-level subfolders; empty where the images lie in the folder itself."""
    outside = next((file for file in files if "/" not in file), None)
    inside = next((file for file in files if "/" in file), None)
    if outside is not None and inside is not None:
        raise DataError(
            f"{root}: {outside} lies beside the class subfolders ({inside}): move it into one, "
            "or set labels to none"
        )
    return tuple(sorted({file.split("/", 1)[0] for file in files})) if inside else ()


def _look(
    root: Path, files: Sequence[str], size: int | None, max_pixels: int
) -> tuple[list[_Look], list[Fault]]:
    looks, faults = [], []
    for file in files:
        try:
            if not file.isprintable():  # also what is not UTF-8 on disk
                raise ImageFault("its name has characters that are no text; rename it")
            with opened(root / file, max_pixels) as image:
                width, height = upright_size(image)
                grey = is_grey(image)
            if size is not None:
                check_size(width, height, size)
            looks.append(_Look(file, grey, width, height))
        except ImageFault as fault:
            faults.append(Fault(str(root), ascii(file)[1:-1] if not file.isprintable() else file, str(fault)))
    return looks, faults


def _common_channels(root: Path, looks: Sequence[_Look]) -> Channels:
    first = looks[0]
    other = next((look for look in looks if look.grey != first.grey), None)
    if other is not None:
        grey, colour = (first, other) if first.grey else (other, first)
        raise DataError(
            f"{root}: mixed channel counts: {grey.file} is grey, {colour.file} is coloured; "
            "set channels to 1 or 3"
        )
    return 1 if first.grey else 3


def _common_size(root: Path, looks: Sequence[_Look]) -> tuple[int, int]:
    first = looks[0]
    shape = (first.width, first.height)
    other = next((look for look in looks if (look.width, look.height) != shape), None)
    if other is not None:
        smallest = min(min(look.width, look.height) for look in looks)
        raise DataError(
            f"{root}: sizes differ: {first.file} is {first.width}x{first.height}, {other.file} is "
            f"{other.width}x{other.height}; give a size (at most {smallest})"
        )
    return first.height, first.width


def _keys(files: Sequence[str]) -> list[str]:
    """File names without suffix. A dot would end a WebDataset key, so it becomes `_`; twins are numbered."""
    keys: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = os.path.splitext(file)[0].replace(".", "_")
        key, number = stem, 2
        while key in taken:
            key, number = f"{stem}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _caption(image: Path) -> str | None:
    path = image.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ImageFault(f"its caption {path.name} cannot be read as UTF-8 text") from error
