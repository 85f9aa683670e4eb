"""Marks in the noise that a sampler begins with: nothing is added to the picture, it is drawn marked.

One scheme a file; see `core/components.py`. To find a mark, the sampler is inverted (`core/inversion.py`):
the noise that leads to the picture is compared with the key. Both schemes compare in a way whose p-value is
exact for any picture whatever, over the draw of the key, so the noise found for a real photograph need not
be white. The noise's scale has no effect.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from sfumato.core.components import Component, Components
from sfumato.provenance.watermarks import Detection, Message

PUBLIC = "sfumato"
"""Stands for the secret where there is none."""


class NoiseConfig(Component, Message):
    """A scheme with its message and its secret."""

    secret: str | None = Field(
        None,
        min_length=1,
        description="What the key is drawn from; without it nobody can find the mark, or draw marked noise. "
        "null: a key that everybody knows.",
    )

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> NoiseMark:
        """The mark of noise of this shape (C, h, w); raises ConfigError for noise that is too small."""


class NoiseMark:
    """A scheme at work."""

    @abstractmethod
    def applied(self, noise_NChw: Tensor, seeds: Sequence[int]) -> Tensor:
        """Standard normal noise with the mark. Row i is a function of its own noise and seed."""

    @abstractmethod
    def detect(self, noise_Chw: Tensor) -> Detection:
        """How far noise that was found for a picture agrees with the key and the message."""


NOISES: Components[Any] = Components("sfumato.provenance.noises", NoiseConfig, default="gaussian_shading")
