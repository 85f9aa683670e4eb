"""IDX files, the layout of MNIST (LeCun, Cortes and Burges) and Fashion-MNIST, gzipped or not.

A file is `00 00 TYPE RANK`, the sizes as big-endian 32-bit integers, then the values.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sfumato.data.format.images import U8
from sfumato.data.packing import source_files
from sfumato.data.packing.array_source import ArraySource
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.source import I64, Opening, Source, SourceConfig, Words
from sfumato.errors import DataError

_UINT8 = 0x08
_MOST_BYTES = 1 << 36
IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
_LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}


class IdxSource(SourceConfig):
    """Grey images uint8 [N, H, W] and labels [N] in IDX files."""

    NEIGHBOURS: ClassVar[bool] = True
    FILES: ClassVar[tuple[str, ...]] = ("-ubyte",)
    PRECEDENCE: ClassVar[int] = 40

    kind: Literal["idx"] = Field("idx", description="IDX files, the format of MNIST.")
    path: str = Field(description="The folder of the four usual files, or one file of images.")
    part: Literal["train", "test"] = Field("train", description="In a folder: which pair of files.")
    labels: str | None = Field(
        None, description="File of the labels; null: the usual one next to the images, if it exists."
    )
    classes: Words = Field((), description="Names of the labels in order; empty: their numbers.")

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return folder.has(*(name + end for name in IMAGES.values() for end in ("", ".gz")))

    @property
    def name(self) -> str:
        path = Path(self.path).expanduser().resolve()
        return f"{path.name}-{self.part}" if path.is_dir() else path.name.split("-idx")[0].split(".")[0]

    def open(self, opening: Opening) -> Source:
        path = self._images()
        pixels_NHW = read(path, 3)
        count, height, width = pixels_NHW.shape
        if not pixels_NHW.size:
            raise DataError(f"{path}: holds no images (shape {pixels_NHW.shape})")
        if height * width > opening.max_pixels:
            raise DataError(f"{path}: {width}x{height} is more than max_pixels={opening.max_pixels:,}")
        labels_path = self._label_file(path)
        labels_N: I64 | None = None
        classes: tuple[str, ...] = ()
        if labels_path is not None:
            values = read(labels_path, 1)
            if len(values) != count:
                raise DataError(
                    f"{labels_path}: {len(values):,} labels for the {count:,} images of {path.name}"
                )
            labels_N, classes = source_files.numbered(values.tolist(), self.classes, str(labels_path))
        mark = source_files.state(path)
        return ArraySource(pixels_NHW[..., None], labels_N, classes, f"IDX file {path.name}", mark)

    def _images(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return path
        found = _either(path / IMAGES[self.part])
        if found is None:
            raise DataError(f"{path}: no {IMAGES[self.part]}, with or without .gz")
        return found

    def _label_file(self, images: Path) -> Path | None:
        if self.labels is not None:
            return Path(self.labels).expanduser()
        plain = images.with_name(images.name.removesuffix(".gz"))
        usual = {IMAGES[part]: _LABELS[part] for part in IMAGES}.get(plain.name)
        return None if usual is None else _either(plain.with_name(usual))


def _either(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def read(path: Path, rank: int) -> U8:
    """The uint8 array of an IDX file. Raises DataError; never reads more than its header announces."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _array(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, path, rank)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _array(file: BinaryIO, path: Path, rank: int) -> U8:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file")
    if head[2] != _UINT8 or head[3] != rank:
        raise DataError(
            f"{path}: IDX of type 0x{head[2]:02x} and {head[3]} dimensions; wanted uint8 (0x08) and {rank}"
        )
    shape = tuple(np.frombuffer(_exactly(file, 4 * rank, path), ">u4").astype(int).tolist())
    values: NDArray[np.uint8] = np.frombuffer(
        _exactly(file, int(np.prod(shape, dtype=object)), path), np.uint8
    )
    if file.read(1):
        raise DataError(f"{path}: longer than its header says (shape {shape})")
    return values.reshape(shape)


def _exactly(file: BinaryIO, count: int, path: Path) -> bytes:
    """Read piece by piece: a false header costs no memory."""
    if count > _MOST_BYTES:
        raise DataError(f"{path}: its header announces {count:,} bytes")
    data = bytearray()
    while len(data) < count:
        piece = file.read(min(1 << 24, count - len(data)))
        if not piece:
            raise DataError(f"{path}: truncated: {len(data):,} bytes where its header says {count:,}")
        data += piece
    return bytes(data)


COMPONENT = IdxSource
