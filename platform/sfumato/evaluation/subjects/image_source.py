"""Existing images as what is evaluated."""

from __future__ import annotations

from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Int64Array
from sfumato.evaluation.store import digest
from sfumato.evaluation.subjects.images import Resized
from sfumato.evaluation.subjects.source import Drawn, Kind
from sfumato.provenance.door import Door

BLOCK = 64


class ImageSource:
    """Existing images: a folder or a data set that is compared with another."""

    kind: Kind = "images"
    block = BLOCK
    door = Door()
    """They were not made here: they leave as they are."""

    def __init__(self, images: Reference) -> None:
        self._images = images
        self.spec = images.spec
        self.size: int | None = images.size
        self.conditional = images.spec.num_classes > 0
        self.captioned = isinstance(images, Captioned) and images.captioned
        self.digest = digest("images", images.digest)
        self.resized = images.about if isinstance(images, Resized) else ""

    def draw(self, index: int, *, seed: int, labels_B: Int64Array | None) -> Drawn:
        """Images `index * block` onwards with their own labels; nothing is random."""
        first = index * self.block
        return Drawn(*self._images.read(first, min(first + self.block, self._images.size)))

    def captions_of(self, index: int) -> list[str]:
        """Their own."""
        assert isinstance(self._images, Captioned)
        first = index * self.block
        return self._images.captions(first, min(first + self.block, self._images.size))
