"""Adaptive discriminator augmentation (Karras, Aittala, Hellsten, Laine, Lehtinen, Aila 2020, sec. 3, app.
B).

Every change happens to an image with probability p, and independently of the others. p rises while the
discriminator is too sure of real images, r = E sign(D(x)) > target, and falls otherwise:

    p <- clip(p + sign(r - target) (images since the last time) / images, 0, 1)      every `interval` steps

p is a state of the family, so all ranks agree on it. As long as p is below 1, changes do not leak: images
that look changed are rarer than they would be unchanged, so only the distribution of the data gives what the
discriminator sees.

blit      mirror, turn by quarters, move by whole pixels up to an eighth of the side
geometry  scale, turn, stretch, move by any amount
colour    brightness, contrast, flip of brightness, hue, saturation

The paper filters before it resamples; here points between pixels are bilinear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.gan.augmentations import Augmentation
from sfumato.layers import transforms

Group = Literal["blit", "geometry", "colour"]
P, _SIGNS, _ROWS = "ada.p", "ada.signs", "ada.rows"


class Ada(Augmentation):
    """See the top of the file."""

    kind: Literal["ada"] = Field("ada", description="Selects adaptive augmentation.")
    target: float = Field(0.6, ge=-1, le=1, description="The mean sign of real scores that p keeps up.")
    images: int = Field(500_000, ge=1, description="Images in which p can rise from 0 to 1.")
    interval: int = Field(4, ge=1, description="Steps between two changes of p.")
    groups: tuple[Group, ...] = Field(
        ("blit", "geometry", "colour"), min_length=1, description="Kinds of changes, in this order."
    )
    fixed: float | None = Field(
        None, ge=0, lt=1, description="A constant p instead, as in the paper's ablations; null adapts."
    )

    def first(self) -> dict[str, Tensor]:
        """No change at all, or the constant."""
        zero = torch.zeros((), dtype=torch.float64)
        return {P: zero + (self.fixed or 0.0), _SIGNS: zero.clone(), _ROWS: zero.clone()}

    def amount_problems(self, batch: int) -> list[str]:
        """Changes of p that are larger than its range."""
        between = batch * self.interval
        if self.fixed is not None or between <= self.images:
            return []
        every = f"every {between:,} images (train.batch={batch:,}, interval={self.interval})"
        whole = f"by more than its whole range where it may rise in {self.images:,}"
        field = "model.objective.augmentation.images"
        return [f"{field}: p changes {every}, {whole}; use at least {between:,}"]

    def sums(self, real_B: Tensor) -> dict[str, Tensor]:
        """Signs of the scores of real images."""
        return {_SIGNS: real_B.sign().double().sum(), _ROWS: torch.ones_like(real_B).sum()}

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """p after a step, and the signs since it last changed."""
        if self.fixed is not None:
            return {name: state[name] for name in self.first()}
        signs, rows = (state[name] + sums.get(name, 0.0) for name in (_SIGNS, _ROWS))
        if progress.step % self.interval:
            return {P: state[P], _SIGNS: signs, _ROWS: rows}
        direction = (signs / rows.clamp_min(1) - self.target).sign()
        p = (state[P] + direction * rows / self.images).clamp(0, 1)
        return {P: p, _SIGNS: torch.zeros_like(signs), _ROWS: torch.zeros_like(rows)}

    def metrics(self, state: State) -> dict[str, Tensor]:
        """p."""
        return {"augmentation": state[P].float()}

    def augment(self, x_BCHW: Tensor, rng: Rng, state: State) -> Tensor:
        """See the base."""
        p = state[P].float()
        for group in self.groups:
            x_BCHW = _GROUPS[group](x_BCHW, rng, p)
        return x_BCHW


class _Chance:
    """Draws that leave an image alone with probability 1 - p, by the value that changes nothing."""

    def __init__(self, rng: Rng, p: Tensor) -> None:
        self._rng, self._p = rng, p

    def of(self, drawn_B: Tensor, nothing: float, p: Tensor | None = None) -> Tensor:
        """Each number with probability p, else `nothing`."""
        happens_B = self._rng.uniform() < (self._p if p is None else p)
        return torch.where(happens_B, drawn_B, nothing)


def blit(x_BCHW: Tensor, rng: Rng, p: Tensor) -> Tensor:
    """Changes that move every pixel onto a pixel."""
    _, _, height, width = x_BCHW.shape
    chance = _Chance(rng, p)
    one_B = torch.ones(len(x_BCHW), device=x_BCHW.device)
    mirror_B = chance.of(1.0 - 2 * rng.integers(2), 1.0)
    quarters_B = chance.of(rng.integers(4).float(), 0.0)
    happens_B = chance.of(one_B, 0.0)
    x_B, y_B = ((rng.uniform() * 2 - 1) * happens_B / 8 for _ in range(2))
    # Exact sines and cosines of quarters, so that pixels fall onto pixels.
    turn_B33 = transforms.rotation(quarters_B * (math.pi / 2)).round()
    matrix_B33 = transforms.scaling(mirror_B, one_B) @ turn_B33
    matrix_B33 = matrix_B33 @ transforms.translation((x_B * width).round(), (y_B * height).round())
    return transforms.warped(x_BCHW, matrix_B33)


def geometry(x_BCHW: Tensor, rng: Rng, p: Tensor) -> Tensor:
    """Changes that need pixels between pixels."""
    _, _, height, width = x_BCHW.shape
    chance = _Chance(rng, p)
    half = 1 - (1 - p).sqrt()  # of each of two turns, so that one of them happens with probability p
    scale_B = chance.of((0.2 * math.log(2) * rng.normal()).exp(), 1.0)
    before_B = chance.of((rng.uniform() * 2 - 1) * math.pi, 0.0, half)
    stretch_B = chance.of((0.2 * math.log(2) * rng.normal()).exp(), 1.0)
    after_B = chance.of((rng.uniform() * 2 - 1) * math.pi, 0.0, half)
    happens_B = chance.of(torch.ones_like(scale_B), 0.0)
    x_B, y_B = (rng.normal() * happens_B / 8 for _ in range(2))
    matrix_B33 = transforms.scaling(1 / scale_B, 1 / scale_B) @ transforms.rotation(before_B)
    matrix_B33 = matrix_B33 @ transforms.scaling(1 / stretch_B, stretch_B) @ transforms.rotation(after_B)
    matrix_B33 = matrix_B33 @ transforms.translation(x_B * width, y_B * height)
    return transforms.warped(x_BCHW, matrix_B33)


def colour(x_BCHW: Tensor, rng: Rng, p: Tensor) -> Tensor:
    """Changes of every pixel's colour alike; hue and saturation only where there are colours."""
    chance = _Chance(rng, p)
    matrix_B44 = transforms.colour_shift(chance.of(0.2 * rng.normal(), 0.0))
    contrast_B = chance.of((0.5 * math.log(2) * rng.normal()).exp(), 1.0)
    matrix_B44 = transforms.colour_scaling(contrast_B) @ matrix_B44
    matrix_B44 = transforms.grey_flip(chance.of(rng.integers(2).float(), 0.0)) @ matrix_B44
    if x_BCHW.shape[1] == 3:
        matrix_B44 = transforms.hue(chance.of((rng.uniform() * 2 - 1) * math.pi, 0.0)) @ matrix_B44
        matrix_B44 = transforms.saturation(chance.of((math.log(2) * rng.normal()).exp(), 1.0)) @ matrix_B44
    return transforms.recoloured(x_BCHW, matrix_B44)


_GROUPS: dict[str, Callable[[Tensor, Rng, Tensor], Tensor]] = {
    "blit": blit,
    "geometry": geometry,
    "colour": colour,
}

COMPONENT = Ada
