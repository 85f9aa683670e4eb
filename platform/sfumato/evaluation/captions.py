"""Captions of images: which sets have them, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sfumato.errors import DataError
from sfumato.evaluation.statistics import Float32Array


@runtime_checkable
class Captioned(Protocol):
    """A set of images that may have captions; `captioned` is true if any has."""

    captioned: bool

    def captions(self, first: int, stop: int) -> list[str]:
        """Those of images `first` to `stop` - 1, in the order of `read`.

        Raises DataError for an image without one.
        """
        ...


@runtime_checkable
class GivesCaptions(Protocol):
    """A source whose images may be drawn for captions, or have their own; `captioned` is true if so."""

    captioned: bool

    def captions_of(self, index: int) -> list[str]:
        """One for each image of block `index`."""
        ...


@runtime_checkable
class ReadsCaptions(Protocol):
    """An extractor that embeds texts in the space of its images."""

    def extract_text(self, captions: Sequence[str]) -> Float32Array:
        """Embeddings [N, dim]."""
        ...


def every_one(captions: Sequence[str | None], names: Sequence[str], where: str) -> list[str]:
    """The captions. Raises DataError for the first image that has none."""
    for caption, name in zip(captions, names, strict=True):
        if not caption:
            raise DataError(f"{where}: {name} has no caption: give every image one, or leave clip_score out")
    return [caption for caption in captions if caption]
