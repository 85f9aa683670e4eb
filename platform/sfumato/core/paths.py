"""The path from noise to an image, which edits enter in the middle.

Level 0 is where samples begin, level `steps` is the image. A point at level i is signal_i x_0 + noise_i eps,
with x_0 the image in the space that the model works on. Edits (`sfumato.editing`) know a model by this alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from sfumato.core.family import Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng


class Level(NamedTuple):
    """A noise level."""

    signal: float
    noise: float
    time: float
    """What the network is told of it."""


class Path(ABC):
    """The path of one request: its networks, conditions and sampling options. Tensors have `num` rows."""

    levels: Sequence[Level]
    """From noise to image: one more than there are steps; the last has signal 1 and noise 0."""
    shape: tuple[int, ...]
    """(C, h, w) of a point."""

    @property
    def steps(self) -> int:
        """How many lead from noise to image."""
        return len(self.levels) - 1

    @abstractmethod
    def encode(self, image_NCHW: Tensor) -> Tensor:
        """x_0 of images in [-1, 1]: themselves, or their mean latents."""

    @abstractmethod
    def decode(self, x_NCHW: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of x_0."""

    @abstractmethod
    def sample(self, x_NCHW: Tensor, first: int) -> Tensor:
        """x_0 that the model's sampler reaches from x at level `first`; at level 0, x is standard normal."""

    @abstractmethod
    def image(self, x_NCHW: Tensor, at: int) -> Tensor:
        """x_0 that the network predicts from x at level `at`, which is not the last."""

    def noised(self, x0_NCHW: Tensor, at: int, noise_NCHW: Tensor) -> Tensor:
        """x at level `at`."""
        signal, noise, _ = self.levels[at]
        return signal * x0_NCHW + noise * noise_NCHW

    def eps(self, x_NCHW: Tensor, at: int) -> Tensor:
        """The noise that the network sees in x at level `at`."""
        signal, noise, _ = self.levels[at]
        return (x_NCHW - signal * self.image(x_NCHW, at)) / noise


@runtime_checkable
class HasPath(Protocol):
    """A family whose samples come out of noise step by step."""

    def path(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Path:
        """The path of a request. Raises ConfigError for a model without one that edits could enter."""
        ...


@runtime_checkable
class BeginsInNoise(HasPath, Protocol):
    """A family that draws its samples from `SampleRng.beginning` alone."""

    def noise_shape(self, options: Any) -> tuple[int, ...]:
        """(C, h, w) of that noise, which can be found again for a sample drawn with these options.

        Raises ConfigError where it cannot: a sampler that adds noise on its way, or has no path.
        """
        ...
