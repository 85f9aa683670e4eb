"""Looks at a source before it is packed: sizes, colours, near duplicates. No pixel is kept.

The findings decide which samples go where, so all samples are scanned once, by tasks that run
anywhere; they read only headers, unless they look for duplicates.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import Channels, bombs_refused, opened
from sfumato.data.packing.dedupe import Print, print_of
from sfumato.data.packing.opt_out import NOTHING, OptOut, url_of
from sfumato.data.packing.resizing import Encoded, Look, look, upright
from sfumato.data.packing.source import Source, SourceConfig, as_image
from sfumato.data.packing.tasks import Runner
from sfumato.provenance.filters import FilterConfig

_ROWS = 512
_TELL = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """The findings about one sample."""

    row: int
    look: Look
    mark: str
    print: Print | None
    further: Mapping[str, Look] = field(default_factory=dict)
    """The looks of its further images."""
    score: float | None = None
    """Of the filter, if there is one."""
    opted_out: str | None = None
    """The kind of the entry of an opt-out list that names it."""
    has_url: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    seen: list[Seen]
    faults: list[Fault]


def needed(config: SourceConfig, source: Source) -> bool:
    """Whether packing has to know each image's size or colour beforehand."""
    if config.dedupe is not None or config.filter is not None or config.opt_out:
        return True
    if any(column.kind == "image" and column.channels == "auto" for column in config.columns.values()):
        return True
    return source.uniform is None and (
        config.channels == "auto" or config.size is None or bool(config.buckets)
    )


def survey(
    source: Source,
    config: SourceConfig,
    max_pixels: int,
    run: Runner,
    advance: Callable[[int], None],
    opt_out: OptOut = NOTHING,
) -> tuple[list[Seen], list[Fault]]:
    """Every sample that can be used, and faults for the others, in the order of the source."""
    prints = config.dedupe is not None or bool(opt_out.prints)
    images = frozenset(name for name, column in config.columns.items() if column.kind == "image")
    tasks = [
        _LookTask(
            source.only(range(first, min(first + _ROWS, len(source.keys)))),
            first,
            max_pixels,
            prints,
            images,
            config.filter,
            opt_out,
        )
        for first in range(0, len(source.keys), _ROWS)
    ]
    parts = list(run(tasks, advance))
    return [seen for part in parts for seen in part.seen], [fault for part in parts for fault in part.faults]


def assumed(source: Source, config: SourceConfig) -> list[Seen]:
    """If looking is not `needed`: every sample, with the look given by the listing or the options."""
    size = config.size or 1
    like = source.uniform or Look(size, size, config.channels == 1)
    return [Seen(row, like, source.mark(row), None) for row in range(len(source.keys))]


@dataclass(frozen=True, slots=True)
class _LookTask:
    """Looks at a part of a source that starts at row `first` of the whole."""

    part: Source
    first: int
    max_pixels: int
    prints: bool
    images: frozenset[str] = frozenset()
    """The further columns that are images."""
    filter: FilterConfig | None = None
    opt_out: OptOut = NOTHING

    def __call__(self) -> Iterator[int | _Part]:
        seen: list[Seen] = []
        faults: list[Fault] = []
        told = 0
        with bombs_refused():
            for row in range(len(self.part.keys)):
                try:
                    seen.append(self._see(row))
                except ImageFault as fault:
                    faults.append(Fault(self.part.description, self.part.name(row), str(fault)))
                if row + 1 - told == _TELL:
                    yield _TELL
                    told += _TELL
        yield len(self.part.keys) - told
        yield _Part(seen, faults)

    def _see(self, row: int) -> Seen:
        record = self.part.read(row)
        image = record.image
        found = look(image, self.max_pixels)
        further = {
            name: look(as_image(value), self.max_pixels)
            for name, value in record.extra.items()
            if name in self.images
        }
        decoded, bits, score = None, None, None
        if self.prints or self.filter is not None:
            decoded = _decoded(image, found, self.max_pixels)
            bits = print_of(decoded) if self.prints else None
            score = self._score(decoded)
        names = (self.part.keys[row], self.part.name(row))
        reason = self.opt_out.reason(names, image, record.meta, bits) if self.opt_out.lists else None
        has_url = url_of(record.meta) is not None
        return Seen(self.first + row, found, self.part.mark(row), bits, further, score, reason, has_url)

    def _score(self, picture: Image.Image) -> float | None:
        if self.filter is None:
            return None
        image = np.asarray(picture)
        return float(self.filter.build().scores((image if image.ndim == 3 else image[..., None])[None])[0])


def _decoded(image: Encoded, found: Look, max_pixels: int) -> Image.Image:
    channels: Channels = 1 if found.grey else 3
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[:, :, 0] if channels == 1 else image)
    with opened(io.BytesIO(image) if isinstance(image, bytes) else image, max_pixels) as file:
        return upright(file, channels)
