"""What is in a packed data set: counts, sizes, classes, the mean and deviation of channels, some pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.format import index
from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import U8, bombs_refused, decoded
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.data.packing.tasks import OnProgress, Runner, Tally, in_process
from sfumato.data.storage.read import File, local_copy, open_file

_TELL = 64
_SIDE = 96
_COLUMNS = 10
_MOST = 4
"""One request for the whole shard is faster than single requests for a quarter of its images."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Sums over the measured images of a shard; they add up to those of the set."""

    labels: dict[int, int]
    stored: int
    pixels: int
    total_C: NDArray[np.float64]
    squares_C: NDArray[np.float64]
    bad: int
    pictures: list[list[U8]]
    """For each sample, its image and its further images, in the order of the columns."""


def inspect(
    folder: str | Path,
    *,
    measure: int = 10_000,
    pictures: int = 100,
    run: Runner = in_process,
    progress: OnProgress | None = None,
) -> tuple[dict[str, Any], list[list[U8]]]:
    """A description of the set as plain data, and the image and further images of up to `pictures` samples
    spread over it.

    Counts come from the indexes. Mean and standard deviation, in 0 to 1, are those of `measure` samples
    spread evenly (0: of all).
    """
    manifest = Manifest.load(folder)
    measured = _spread(manifest, measure or manifest.samples)
    shown = _spread(manifest, pictures)
    tasks = [
        _InspectTask(str(folder), manifest, shard, manifest.image_of(shard), measured[n], set(shown[n]))
        for n, shard in enumerate(manifest.shards)
    ]
    parts = list(run(tasks, Tally(progress, sum(map(len, measured)))))
    return _described(manifest, parts), [picture for part in parts for picture in part.pictures]


def _spread(manifest: Manifest, count: int) -> list[list[int]]:
    """For each shard, its rows among `count` samples spread evenly over the set."""
    total = manifest.samples
    chosen = np.unique(np.linspace(0, total - 1, min(max(count, 0), total)).round().astype(np.int64))
    ends = np.cumsum(manifest.shard_samples)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [
        (part - end + n).tolist() for part, end, n in zip(parts, ends, manifest.shard_samples, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _InspectTask:
    folder: str
    manifest: Manifest
    shard: ShardInfo
    image: ImageInfo
    measured: Sequence[int]
    shown: set[int]

    def __call__(self) -> Iterator[int | _Part]:
        rows = index.load_shard(self.folder, self.shard)
        values, counts = np.unique(rows.labels, return_counts=True)
        total_C = np.zeros(self.image.channels)
        squares_C = np.zeros(self.image.channels)
        pixels = bad = told = 0
        pictures = []
        wanted = sorted({*self.measured, *self.shown})
        with self._opened(len(wanted)) as file, bombs_refused():
            for done, row in enumerate(wanted, start=1):
                file.seek(int(rows.offsets[row]))
                try:
                    image_HWC = decoded(bytes(file.read(int(rows.sizes[row]))), self.image)
                except ImageFault:
                    bad += 1
                    continue
                flat = image_HWC.reshape(-1, self.image.channels).astype(np.float64) / 255
                total_C += flat.sum(0)
                squares_C += np.square(flat).sum(0)
                pixels += len(flat)
                if row in self.shown:
                    pictures.append([image_HWC, *self._further(rows, row, file)])
                if done - told == _TELL:
                    yield _TELL
                    told = done
        labels = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
        yield _Part(labels, int(rows.sizes.sum()), pixels, total_C, squares_C, bad, pictures)

    def _further(self, rows: index.ShardIndex, row: int, file: File) -> list[U8]:
        """The further images of a sample; white in place of one that is missing or cannot be used."""
        found = []
        for name, look in self.manifest.further_images(self.manifest.columns, self.image).items():
            picture = np.full((look.height, look.width, look.channels), 255, np.uint8)
            place = rows.extra[name][row].as_py()
            if place is not None:
                file.seek(place["offset"])
                with contextlib.suppress(ImageFault):
                    picture = decoded(bytes(file.read(place["size"])), look)
            found.append(picture)
        return found

    @contextlib.contextmanager
    def _opened(self, wanted: int) -> Iterator[File]:
        """Reads only the images of a remote shard, unless most of it is wanted."""
        if wanted * _MOST < self.shard.samples:
            with open_file(self.folder, self.shard.name) as file:
                yield file
            return
        with local_copy(self.folder, self.shard.name) as path, path.open("rb") as copy:
            yield copy


def _described(manifest: Manifest, parts: Sequence[_Part]) -> dict[str, Any]:
    pixels = max(sum(part.pixels for part in parts), 1)
    mean_C = sum((part.total_C for part in parts), np.zeros(manifest.image.channels)) / pixels
    squares_C = sum((part.squares_C for part in parts), np.zeros(manifest.image.channels)) / pixels
    labels: dict[int, int] = {}
    sizes: dict[str, int] = {}
    for part, shard in zip(parts, manifest.shards, strict=True):
        image = manifest.image_of(shard)
        size = f"{image.width}x{image.height}"
        sizes[size] = sizes.get(size, 0) + shard.samples
        for label, count in part.labels.items():
            labels[label] = labels.get(label, 0) + count
    return {
        "name": manifest.name,
        "split": manifest.split,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_image": round(sum(part.stored for part in parts) / manifest.samples),
        "channels": manifest.image.channels,
        "sizes": sizes,
        "classes": {name: labels.get(number, 0) for number, name in enumerate(manifest.classes)},
        "unlabelled": labels.get(index.NO_LABEL, 0) if manifest.classes else manifest.samples,
        "captions": manifest.captions,
        "columns": described(manifest.columns),
        "mean": mean_C.round(6).tolist(),
        "std": np.sqrt(np.maximum(squares_C - mean_C**2, 0)).round(6).tolist(),
        "undecodable": sum(part.bad for part in parts),
        "source": manifest.source,
        "licence": manifest.licence,
        "digest": manifest.digest,
    }


def described(columns: Mapping[str, ColumnInfo]) -> dict[str, str]:
    """A few words on each further column."""
    found = {}
    for name, info in columns.items():
        size = "x".join(str(side) for side in info.shape)
        words = [info.kind, *(() if info.dtype in ("str", "int64") and not size else (info.dtype, size))]
        words.append(f"of {info.samples:,}" if info.samples else "of all")
        found[name] = " ".join(word for word in words if word) + (
            f", by {info.encoder}" if info.encoder else ""
        )
    return found


def contact_sheet(samples: Sequence[Sequence[U8]]) -> Image.Image:
    """Pictures of samples in rows of ten on white, small ones enlarged by whole factors, large ones scaled
    down. Below each row of images come their further images, one row per column."""
    tiles: list[Image.Image] = []
    width = min(len(samples), _COLUMNS)
    for first in range(0, len(samples), _COLUMNS):
        group = samples[first : first + _COLUMNS]
        for pictures in zip(*group, strict=True):
            blank = [Image.new("RGB", (1, 1), "white")] * (width - len(group))
            tiles += [*map(_tile, pictures), *blank]
    width = max(width, 1)
    rows = -(-len(tiles) // width)
    cell = _SIDE + 2
    sheet = Image.new("RGB", (cell * min(len(tiles), width), cell * rows), "white")
    for number, tile in enumerate(tiles):
        left, top = number % width * cell, number // width * cell
        sheet.paste(tile, (left + (cell - tile.width) // 2, top + (cell - tile.height) // 2))
    return sheet


def _tile(picture_HWC: U8) -> Image.Image:
    image = Image.fromarray(picture_HWC[:, :, 0] if picture_HWC.shape[2] == 1 else picture_HWC).convert("RGB")
    factor = _SIDE // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image
