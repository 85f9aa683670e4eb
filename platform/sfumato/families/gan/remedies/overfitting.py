"""How far the discriminator knows its training images by heart (Karras et al. 2020, ADA, sec. 3.1, eq. 1).

    r_v = (E D(train) - E D(held out)) / (E D(train) - E D(generated))

0: it scores images that it was not trained on like those that it was; 1: it takes them for generated ones.
A share of the data is held out from all of the discriminator's updates, and scored where it appears. An image
is held out or not by its own pixels, so that this holds in every epoch, on any number of workers, and whether
it is mirrored or not; cropped or recoloured copies count as other images. Scores are averaged over past
images with a half-life, as a state of the family.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.progress import Progress
from sfumato.core.state import State

_GROUPS = ("train", "held_out", "generated")
_SUM, _ROWS = "overfitting.sum.", "overfitting.rows."
_MODULUS = 2**32
_TINY = 1e-12


class HeldOutConfig(Config):
    """How many images are held out, and how long scores count."""

    share: float = Field(0.1, gt=0, lt=1, description="Of the images, held out from the discriminator.")
    halflife_images: int = Field(
        10_000, ge=1, description="Images after which a past score counts for half in the figure."
    )


def held_out(image_BCHW: Tensor, share: float) -> Tensor:
    """Which images [B] in [-1, 1] are held out: by a hash of the sums of their 8-bit values and squares."""
    value_BN = ((image_BCHW.detach().double() + 1) * 127.5).round().long().flatten(1)
    sum_B, square_B = value_BN.sum(1), value_BN.square().sum(1)
    mixed_B = (sum_B * 2_654_435_761 + (square_B % _MODULUS) * 40_503) % _MODULUS
    mixed_B = ((mixed_B ^ (mixed_B >> 15)) * 2_246_822_519) % _MODULUS
    return mixed_B.double() / _MODULUS < share


class Overfitting:
    """The scores, and the figure."""

    def __init__(self, config: HeldOutConfig) -> None:
        self._config = config

    def first(self) -> dict[str, Tensor]:
        """No scores."""
        return {
            f"{name}{group}": torch.zeros((), dtype=torch.float64)
            for name in (_SUM, _ROWS)
            for group in _GROUPS
        }

    def held_out(self, real_BCHW: Tensor) -> Tensor:
        """See the function."""
        return held_out(real_BCHW, self._config.share)

    def sums(self, held_B: Tensor, real_B: Tensor, fake_B: Tensor) -> dict[str, Tensor]:
        """Of a micro-batch's scores."""
        held_B = held_B.double()
        weights = {"train": 1 - held_B, "held_out": held_B, "generated": torch.ones_like(held_B)}
        found = {}
        for group, weight_B in weights.items():
            score_B = (fake_B if group == "generated" else real_B).detach().double()
            found[f"{_SUM}{group}"] = (weight_B * score_B).sum()
            found[f"{_ROWS}{group}"] = weight_B.sum()
        return found

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """After a step: what there was counts for less, what came for all."""
        kept = 0.5 ** (progress.batch / self._config.halflife_images)
        return {name: kept * state[name] + sums.get(name, 0.0) for name in self.first()}


def figure(state: State) -> Tensor:
    """r_v, a scalar; 0 before there are scores of all three groups. Not bounded: noise leaves [0, 1]."""
    train, held, fake = (state[f"{_SUM}{g}"] / state[f"{_ROWS}{g}"].clamp_min(_TINY) for g in _GROUPS)
    gap = train - fake
    known = torch.stack([state[f"{_ROWS}{group}"] for group in _GROUPS]).amin() > 0
    usable = known & (gap.abs() > _TINY)
    return torch.where(usable, (train - held) / torch.where(usable, gap, 1.0), 0.0)
