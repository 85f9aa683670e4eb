"""Path-length regularisation of a generator with styles (StyleGAN2: Karras et al. 2020, sec. 3.2, eq. 4).

    E_{w, y} (|J_w' y| - a)^2,   J_w' y = grad_w (G(w) . y),   y ~ N(0, I) / sqrt(H W)

A step in style space then moves the image by the same amount everywhere. a is the running mean of the
lengths, a state of the family: a phase compares with its value before the step, and all ranks move it alike
afterwards.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.gan.networks import Generated

MEAN = "path_length.mean"
_ROWS = "path_length.rows"


class PathLengthConfig(Config):
    """How strongly, and how often."""

    weight: float = Field(2.0, gt=0, description="Factor of the penalty.")
    every: int = Field(
        4, ge=1, description="Steps between two penalties, each of which counts as many times."
    )
    decay: float = Field(0.01, gt=0, le=1, description="Weight of a step's lengths in the running mean.")

    @property
    def factor(self) -> float:
        """The penalty's factor in the loss of a step."""
        return self.weight * self.every


class PathLength:
    """The lengths and their running mean."""

    def __init__(self, settings: PathLengthConfig) -> None:
        self._decay = settings.decay

    def first(self) -> dict[str, Tensor]:
        """A mean of zero."""
        return {MEAN: torch.zeros((), dtype=torch.float64)}

    def sums(self, length_B: Tensor) -> dict[str, Tensor]:
        """What a micro-batch adds."""
        return {MEAN: length_B.detach().double().sum(), _ROWS: torch.ones_like(length_B).sum()}

    def advance(self, state: State, sums: State) -> dict[str, Tensor]:
        """The mean after a step; unchanged where the penalty had no turn."""
        mean, rows = state[MEAN], sums.get(_ROWS)
        if rows is None:
            return {MEAN: mean}
        moved = mean + self._decay * (sums[MEAN] / rows.clamp_min(1) - mean)
        return {MEAN: torch.where(rows > 0, moved, mean)}


def path_lengths(made: Generated, rng: Rng) -> Tensor:
    """|J_w' y| [B], differentiable: the root of the mean over layers of the squared gradient."""
    image_BCHW, styles_BLD = made.image_BCHW, made.styles_BLD
    assert styles_BLD is not None, "a generator without styles"
    _, channels, height, width = image_BCHW.shape
    y_BCHW = rng.normal(channels, height, width) / (height * width) ** 0.5
    (gradient_BLD,) = torch.autograd.grad((image_BCHW * y_BCHW).sum(), styles_BLD, create_graph=True)
    return gradient_BLD.float().square().sum(2).mean(1).sqrt()
