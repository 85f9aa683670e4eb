"""Latents, truncated or not, and the statistics of the generator's batch normalisation in sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.config import Config
from sfumato.core.rng import SampleRng
from sfumato.core.seeds import derive
from sfumato.layers.batch_norm import layers_of, measure

ROWS = 64
_STATISTICS_SEED = derive("gan", "standing statistics")


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    truncation: float | None = Field(
        None,
        gt=0,
        description="Latents are normal numbers of at most this size (Brock et al. 2019, sec. 3.1): lower is "
        "more typical and less varied; null does not truncate.",
    )
    psi: float | None = Field(
        None,
        ge=0,
        exclude_if=lambda value: value is None,
        description="Styles are brought so near their mean: w' = mean + psi (w - mean) (Karras et al. 2019, "
        "sec. B): lower is more typical; null leaves them.",
    )
    direction: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: value == 0,
        description="Which of the directions that change images most `distance` goes in, 0 the strongest "
        "(SeFa: Shen & Zhou 2021).",
    )
    distance: float = Field(
        0.0,
        exclude_if=lambda value: value == 0,
        description="How far styles are moved in that direction; a sweep over it, such as -6,-3,0,3,6, shows "
        "what it changes.",
    )
    noise: Literal["all", "none", "coarse", "fine"] = Field(
        "all",
        exclude_if=lambda value: value == "all",
        description="Layers that get noise: those of the lower half of the sides are coarse, the others fine "
        "(Karras et al. 2019, fig. 5); networks with noise, stylegan and stylegan2.",
    )
    noise_seed: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: value == 0,
        description="Which noise the layers get, the same for all images; a sweep over it shows what noise "
        "decides (Karras et al. 2019, fig. 4).",
    )
    statistics: int = Field(
        512,
        ge=64,
        multiple_of=64,
        description="Generated images whose statistics batch normalisation uses in sampling.",
    )

    def style_problems(self, kind: str, *, styles: bool, noisy: bool) -> list[str]:
        """Options that generators of this kind have no part for, one line each."""
        found = []
        if self.psi is not None and not styles:
            found.append(
                f"model.sampling.psi: {kind} has no styles; use sampling.truncation, which shortens latents"
            )
        if (self.distance or self.direction) and not styles:
            found.append(
                f"model.sampling.distance: {kind} has no styles to move; use stylegan2 or stylegan, or leave "
                "it out"
            )
        if (self.noise != "all" or self.noise_seed) and not noisy:
            found.append(
                f"model.sampling.noise: {kind} has no noise in its layers; use stylegan2 or stylegan, or "
                "leave noise and noise_seed out"
            )
        return found


def latents(rng: SampleRng, size: int, truncation: float | None) -> Tensor:
    """Standard normal numbers [N, size], of at most `truncation`, if that is set.

    Truncated ones come from the inverse of the distribution function, so that every sample takes the same
    number of draws: z = Phi^-1(Phi(-t) + u (Phi(t) - Phi(-t))).
    """
    if truncation is None:
        return rng.normal(size)
    u = rng.uniform(size).double()
    inside = math.erf(truncation / math.sqrt(2))  # Phi(t) - Phi(-t)
    z = math.sqrt(2) * torch.erfinv(inside * (2 * u - 1))
    return z.clamp(-truncation, truncation).float()


def class_of(index: int, classes: int, images: int) -> int:
    """The class of image `index` of the statistics: all in turn, or evenly spread if `classes` > `images`."""
    return index * classes // images if classes > images else index % max(1, classes)


class Statistics:
    """Keeps the standing statistics of generators up to date with their weights.

    They are those of `options.statistics` images from latents that depend on nothing, so each image stays
    a function of its own seed, and every process that has the weights finds the same.
    """

    def __init__(self, size: int, classes: int) -> None:
        self._size = size
        self._classes = classes
        self._taken: WeakKeyDictionary[nn.Module, tuple[object, ...]] = WeakKeyDictionary()

    def update(self, generator: nn.Module, options: SamplingConfig) -> None:
        """Measure the statistics if the weights or the options have changed since the last time."""
        if next(layers_of(generator), None) is None:
            return
        # By value: how a tensor records changes in place depends on how it is stored.
        sums = torch.stack([weight.detach().double().sum() for weight in generator.parameters()])
        key = (options.truncation, options.statistics, sums.device.type, *sums.tolist())
        if self._taken.get(generator) != key:
            measure(
                generator, [self._pass(generator, at, options) for at in range(options.statistics // ROWS)]
            )
            self._taken[generator] = key

    def _pass(self, generator: nn.Module, at: int, options: SamplingConfig) -> Callable[[], object]:
        indices = range(at * ROWS, (at + 1) * ROWS)

        def run() -> object:
            device = next(generator.parameters()).device
            rng = SampleRng(_STATISTICS_SEED, indices)
            label_B = torch.tensor([class_of(index, self._classes, options.statistics) for index in indices])
            return generator(latents(rng, self._size, options.truncation).to(device), label_B.to(device))

        return run
