"""The embedded data set: scikit-learn's 1,797 handwritten digits (UCI ML repository, Alpaydin & Kaynak)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from sfumato.data.packing.array_source import ArraySource
from sfumato.data.packing.source import Opening, Source, SourceConfig

_LEVELS = 16


class DigitsSource(SourceConfig):
    """8x8 grey images of the digits 0 to 9, with labels; comes with scikit-learn, nothing to download."""

    WORDS: ClassVar[tuple[str, ...]] = ("digits",)

    kind: Literal["digits"] = Field("digits", description="The embedded handwritten digits.")
    licence: str = Field("CC BY 4.0", description="Terms of use of the images, kept in the manifest.")

    @property
    def name(self) -> str:
        return "digits"

    def open(self, opening: Opening) -> Source:
        from sklearn.datasets import load_digits  # a second to import

        digits = load_digits()
        pixels_NHW = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
        return ArraySource(
            pixels_NHW[..., None],
            digits.target.astype(np.int64),
            tuple(str(digit) for digit in range(10)),
            "scikit-learn load_digits: UCI optical recognition of handwritten digits (test set)",
        )


COMPONENT = DigitsSource
