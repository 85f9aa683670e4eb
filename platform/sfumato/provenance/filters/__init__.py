"""Classifiers of what must not come out, one a file (`core/components.py`); they score images from 0 to 1."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sfumato.core.components import Component, Components

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
Scores = NDArray[np.float32]
"""float32 [N], from 0 to 1."""


class FilterConfig(Component):
    """A classifier and the score from which an image counts as found."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What it needs besides Sfumato's sampling side; a registered model asks for them."""

    threshold: float = Field(0.8, ge=0, le=1, description="Score from which an image is found.")

    @abstractmethod
    def build(self) -> Classifier:
        """Ready to score; raises ConfigError where a package is missing."""


class Classifier:
    """A classifier at work."""

    @abstractmethod
    def scores(self, images_NHWC: Images) -> Scores:
        """Of every image; an image's score does not depend on the others."""


FILTERS: Components[Any] = Components("sfumato.provenance.filters", FilterConfig, default="open_nsfw")
