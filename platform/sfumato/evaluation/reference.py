"""The real images that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sfumato.core.batch import DataSpec

ImageBlock = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None]
"""Images uint8 [n, H, W, C], and their labels int64 [n] where the data has classes."""


class Reference(Protocol):
    """A fixed, ordered set of real images. `digest` identifies its content; `size` counts it."""

    digest: str
    spec: DataSpec
    size: int

    def blocks(self) -> Iterator[ImageBlock]:
        """All images in order, a block at a time."""
        ...
