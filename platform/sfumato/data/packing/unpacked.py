"""A source read in place, without packing it: for callers that need its images once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import MAX_PIXELS, U8, bombs_refused
from sfumato.data.format.manifest import ImageInfo
from sfumato.data.packing import download
from sfumato.data.packing.layout import channels_of, geometry_of, sizes_of
from sfumato.data.packing.scan import assumed, needed, survey
from sfumato.data.packing.source import NO_LABEL, Opening, SourceConfig
from sfumato.data.packing.tasks import in_process
from sfumato.errors import DataError


class InPlace:
    """The images of a source as packing would store them, all of one size.

    `faults` lists the samples found unusable; `keys` has the others. Raises DataError for a source that
    cannot be read, and for images that do not go together.
    """

    def __init__(self, config: SourceConfig, max_pixels: int = MAX_PIXELS) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="sfumato-source-")
        config = download.local(config, Path(self._scratch.name), None, lambda name: None)
        opening = Opening(max_pixels, Path(self._scratch.name), in_process, lambda done, total: None)
        with bombs_refused():
            source = config.open(opening)
            seen, faults = assumed(source, config), list[Fault]()
            if needed(config, source):
                seen, faults = survey(source, config, max_pixels, in_process, lambda count: None)
        channels = channels_of(config, seen)
        sizes, small = sizes_of(source, config, seen)
        self.faults: Sequence[Fault] = (*source.faults, *faults, *small)
        if not sizes:
            raise DataError(f"{source.description}: no usable image; the first: {self.faults[0]}")
        if len(set(sizes.values())) > 1:
            raise DataError(f"{source.description}: pack it first, as its buckets have several sizes")
        ((width, height),) = set(sizes.values())
        self._source = source.only(sorted(sizes))
        self._geometry = geometry_of(config, channels, (width, height), max_pixels)
        self.image = ImageInfo(channels=channels, height=height, width=width)
        self.keys, self.classes = self._source.keys, tuple(source.classes)
        self.description = source.description

    def caption(self, row: int) -> str | None:
        """The caption of sample `row` of `keys`. Raises ImageFault."""
        return self._source.read(row).caption

    def read(self, row: int) -> tuple[U8, int | None]:
        """Pixels uint8 [H, W, C] and class of sample `row` of `keys`. Raises ImageFault."""
        with bombs_refused():
            pixels_HWC = self._geometry.pixels(self._source.read(row).image, self.keys[row])
        if pixels_HWC.shape != (self.image.height, self.image.width, self.image.channels):
            raise ImageFault(f"{pixels_HWC.shape[1]}x{pixels_HWC.shape[0]}, where all are another size")
        label = NO_LABEL if self._source.labels is None else int(self._source.labels[row])
        return pixels_HWC, None if label == NO_LABEL else label
