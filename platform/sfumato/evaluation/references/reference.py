"""The real images that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition, Source
from sfumato.data.format.faults import OnError
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError
from sfumato.evaluation.subjects.image_set import ROWS, ImageBlock, ImageSet, joined

MOST_FAULTS = 100
"""Images that a set may leave out because they cannot be used."""


class Reference(Protocol):
    """A fixed, ordered set of images. `digest` identifies its content; `size` counts it. Picklable."""

    digest: str
    spec: DataSpec
    size: int

    def read(self, first: int, stop: int) -> ImageBlock:
        """Images `first` to `stop` - 1; fewer if some cannot be used and the set leaves them out."""
        ...

    def parts(self, rows: int) -> Iterator[range]:
        """The positions of all images in order, up to `rows` at a time, as they are best read."""
        ...

    def blocks(self) -> Iterator[ImageBlock]:
        """All images in order, a block at a time."""
        ...


@runtime_checkable
class Captioned(Protocol):
    """A set of images that may have captions; `captioned` says whether any has."""

    captioned: bool

    def captions(self, first: int, stop: int) -> list[str]:
        """Those of images `first` to `stop` - 1, as `read` gives these.

        Raises DataError for an image without one.
        """
        ...


class PackedReference(ImageSet):
    """A packed data set, in the order of its manifest; with buckets, only the images of its most common size,
    the size that a model draws.

    With `on_error="skip"`, samples that cannot be used are left out, always the same ones for manifests of
    equal digest. Raises DataError if there is no data set.
    """

    def __init__(self, folder: str | Path, on_error: OnError = "fail") -> None:
        whole = Manifest.load(folder)
        manifest = whole.of_its_size()
        self.whole_digest = whole.digest
        self._folder, self._manifest = folder, manifest
        self._on_error: OnError = on_error
        self.digest = manifest.digest
        self.spec = manifest.spec
        self.size = manifest.samples
        self.captioned = manifest.captions > 0

    def parts(self, rows: int) -> Iterator[range]:
        """Up to `rows` images of one shard at a time; always 512 where some may be left out, so that the
        rows of a chunk, and with them the last bits of features, are those of a set read as a whole.
        """
        rows = ROWS if self._on_error == "skip" else rows
        first = 0
        for shard in self._manifest.shards:
            last = first + shard.samples
            yield from (range(start, min(start + rows, last)) for start in range(first, last, rows))
            first = last

    def captions(self, first: int, stop: int) -> list[str]:
        """Captions of the images that `read` gives. Raises DataError for one without a caption."""
        texts: list[str] = []
        for columns in read_all(
            self._folder, ROWS, on_error=self._on_error, first=first, stop=stop, text=True
        ):
            texts += columns["text"].tolist()
        names = [f"image {first + row}" for row in range(len(texts))]
        return every_one(texts, names, str(self._folder))

    def conditions(self, taken: Sequence[Condition]) -> Source:
        """Its columns for the conditions that it covers."""
        return rows_of_data(str(self._folder), taken, self._on_error, missing=True)

    def _read(self, first: int, stop: int) -> ImageBlock:
        """By ranged reads of the shards."""
        found = read_all(
            self._folder, ROWS, on_error=self._on_error, first=first, stop=stop, manifest=self._manifest
        )
        return joined([(columns["image"], columns.get("label")) for columns in found])


def every_one(captions: Sequence[str | None], names: Sequence[str], where: str) -> list[str]:
    """The captions. Raises DataError for the first image that has none."""
    for caption, name in zip(captions, names, strict=True):
        if not caption:
            raise DataError(f"{where}: {name} has no caption: give every image one, or leave clip_score out")
    return [caption for caption in captions if caption]
