"""The path from noise to image of a diffusion model; implements `core.paths.Path`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import Nets
from sfumato.core.paths import Path
from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.latent import LatentSpace
from sfumato.families.diffusion.objectives import Objective


class DiffusionPath(Path):
    """Of pixels or, with `space`, of latents."""

    def __init__(
        self,
        objective: Objective,
        network: Guided,
        nets: Nets,
        options: Any,
        rng: SampleRng,
        shape: tuple[int, ...],
        *,
        clip: bool,
        space: LatentSpace | None,
    ) -> None:
        self.levels = objective.noise_levels(options)
        self.shape = shape
        self._objective, self._network, self._nets = objective, network, nets
        self._options, self._rng, self._clip, self._space = options, rng, clip, space

    def encode(self, image_NCHW: Tensor) -> Tensor:
        """Itself, or its mean latent, scaled."""
        batch: Batch = {"image": image_NCHW}
        return image_NCHW if self._space is None else self._space.mean(self._nets, batch)

    def decode(self, x_NCHW: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]."""
        image = x_NCHW if self._space is None else self._space.decode(self._nets, x_NCHW)
        return image.clamp(-1, 1)

    def sample(self, x_NCHW: Tensor, first: int) -> Tensor:
        """By the objective's sampler."""
        if first == self.steps:
            return x_NCHW
        return self._objective.sample(
            self._network, x_NCHW, self._options, self._rng, clip=self._clip, first=first
        )

    def image(self, x_NCHW: Tensor, at: int) -> Tensor:
        """As guided, clipped as in sampling."""
        x0_NCHW = self._objective.image(self._network, x_NCHW, self.levels[at])
        return x0_NCHW.clamp(-1, 1) if self._clip else x0_NCHW
