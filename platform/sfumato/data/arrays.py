"""A source over arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfumato.data.faults import Fault
from sfumato.data.images import U8
from sfumato.data.manifest import ImageInfo
from sfumato.data.sources import Record


class ArraySource:
    """Images uint8 [N, H, W, C] and labels int64 [N] (None: unlabelled). Keys are row numbers."""

    faults: Sequence[Fault] = ()

    def __init__(
        self,
        pixels_NHWC: U8,
        labels_N: NDArray[np.int64] | None,
        classes: tuple[str, ...],
        description: str,
    ) -> None:
        self._pixels_NHWC = pixels_NHWC
        self._labels_N = labels_N
        _, height, width, channels = pixels_NHWC.shape
        self.image = ImageInfo(channels=3 if channels == 3 else 1, height=height, width=width)
        self.classes = classes
        self.keys = [f"{row:08d}" for row in range(len(pixels_NHWC))]
        self.description = description

    def read(self, index: int) -> Record:
        label = None if self._labels_N is None else int(self._labels_N[index])
        return Record(self._pixels_NHWC[index], label, None)
