"""Finds an image, and near copies of it, in a packed data set.

Packing may have resized and cropped what it stored, and a copy may be mirrored. So the image is compared as
a whole and as packing stores it by default, each also mirrored, by the fingerprints of `packing/dedupe.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

from sfumato.data.format import index
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import MAX_PIXELS, U8, bombs_refused, decoded, is_grey, opened
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.data.packing.dedupe import ALIKE, Print, difference_of, print_of, print_of_pixels
from sfumato.data.packing.opt_out import hex_of
from sfumato.data.packing.resizing import covering, pixels_of, upright
from sfumato.data.packing.tasks import OnProgress, Runner, Tally, in_process
from sfumato.data.storage.read import local_copy
from sfumato.errors import DataError

_TELL = 64


@dataclass(frozen=True)
class Query:
    """The image that is sought: decoded, upright, grey or RGB."""

    image: Image.Image
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises DataError for a file that is no image."""
        try:
            content = path.read_bytes()
            with bombs_refused(), opened(path, MAX_PIXELS) as file:
                image = upright(file, 1 if is_grey(file) else 3)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ImageFault as fault:
            raise DataError(f"{path}: {fault}") from fault
        return cls(image, hashlib.sha256(content).hexdigest())

    @property
    def phash(self) -> str:
        """The hash of the whole image, as opt-out lists have it."""
        return hex_of(print_of(self.image))

    def prints(self, look: ImageInfo) -> dict[str, Print]:
        """Fingerprints of the image in the ways in which a set of this shape may hold it, by way."""
        whole = self.image.convert("L") if look.channels == 1 else self.image
        ways = {"whole": whole}
        if whole.size != (look.width, look.height):
            ways["as packed"] = _packed(whole, look)
        mirrored = {f"{way}, mirrored": ImageOps.mirror(picture) for way, picture in ways.items()}
        return {way: print_of(picture) for way, picture in {**ways, **mirrored}.items()}


@dataclass(frozen=True, slots=True)
class Match:
    """A sample that looks like the image: `bits` of the hashes differ, and the thumbnails by `difference`."""

    shard: str
    key: str
    bits: int
    difference: float
    way: str
    same_pixels: bool

    def told(self, data: str) -> dict[str, Any]:
        """As plain data."""
        return {
            "data": data,
            "shard": self.shard,
            "key": self.key,
            "bits": self.bits,
            "difference": round(self.difference, 3),
            "as": self.way,
            "same_pixels": self.same_pixels,
        }


def find(
    query: Query,
    folder: str,
    *,
    bits: int,
    run: Runner = in_process,
    progress: OnProgress | None = None,
) -> tuple[list[Match], int]:
    """The samples of a data set that look like the image, the nearest first, and how many were looked at.

    A near copy differs in at most `bits` of 64 bits of the hash and looks alike in an 8 x 8 colour thumbnail.
    """
    manifest = Manifest.load(folder)
    looks = {manifest.image_of(shard) for shard in manifest.shards}
    prints = {look: query.prints(look) for look in looks}
    tasks = [
        _TraceTask(folder, shard, look := manifest.image_of(shard), prints[look], _pixels(query, look), bits)
        for shard in manifest.shards
    ]
    found = [match for part in run(tasks, Tally(progress, manifest.samples)) for match in part]
    order = sorted(found, key=lambda m: (not m.same_pixels, m.bits, m.difference, m.shard, m.key))
    return order, manifest.samples


@dataclass(frozen=True, slots=True)
class _TraceTask:
    folder: str
    shard: ShardInfo
    look: ImageInfo
    prints: dict[str, Print]
    pixels: U8
    """Of the image as packing stores it."""
    bits: int

    def __call__(self) -> Iterator[int | list[Match]]:
        rows = index.load_shard(self.folder, self.shard)
        found = []
        told = 0
        with local_copy(self.folder, self.shard.name) as path, path.open("rb") as file, bombs_refused():
            for row in range(len(rows)):
                file.seek(int(rows.offsets[row]))
                try:
                    pixels = decoded(file.read(int(rows.sizes[row])), self.look)
                except ImageFault as fault:
                    raise DataError(f"{self.folder}: {self.shard.name}: {rows.keys[row]}: {fault}") from fault
                if (match := self._match(str(rows.keys[row]), pixels)) is not None:
                    found.append(match)
                if row + 1 - told == _TELL:
                    yield _TELL
                    told += _TELL
        yield len(rows) - told
        yield found

    def _match(self, key: str, pixels: U8) -> Match | None:
        theirs = print_of_pixels(pixels)
        same = np.array_equal(self.pixels, pixels)
        ways = [
            ((mine.bits ^ theirs.bits).bit_count(), difference_of(mine.thumb, theirs.thumb), way)
            for way, mine in self.prints.items()
        ]
        bits, difference, way = min(ways)
        if same or (bits <= self.bits and difference <= ALIKE):
            return Match(self.shard.name, key, bits, difference, way, same)
        return None


def _packed(image: Image.Image, look: ImageInfo) -> Image.Image:
    """As packing with its default options stores it."""
    return covering(image, (look.width, look.height), "lanczos", "center", "", upscale=True)


def _pixels(query: Query, look: ImageInfo) -> U8:
    return pixels_of(_packed(query.image.convert("L" if look.channels == 1 else "RGB"), look))
