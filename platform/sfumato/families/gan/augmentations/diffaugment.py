"""DiffAugment (Zhao, Liu, Lin, Zhu, Han 2020, sec. 3.3): the same kinds of random changes in every step.

colour       brightness + U[-0.5, 0.5), saturation * U[0, 2), contrast * U[0.5, 1.5)
translation  by whole pixels, up to an eighth of the side in each direction, zeros beyond
cutout       a square of half the side, at a random place, set to zero
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.gan.augmentations import Augmentation

Change = Literal["colour", "translation", "cutout"]


class DiffAugment(Augmentation):
    """See the top of the file."""

    kind: Literal["diffaugment"] = Field("diffaugment", description="Selects DiffAugment.")
    policy: tuple[Change, ...] = Field(
        ("colour", "translation", "cutout"), min_length=1, description="Kinds of changes, in this order."
    )

    def augment(self, x_BCHW: Tensor, rng: Rng, state: State) -> Tensor:
        """See the base."""
        for change in self.policy:
            x_BCHW = _CHANGES[change](x_BCHW, rng)
        return x_BCHW


def colour(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """Brightness, saturation (of images with several channels) and contrast."""
    bright_B111, saturated_B111, contrast_B111 = rng.uniform(3, 1, 1, 1).unbind(1)
    x_BCHW = x_BCHW + (bright_B111 - 0.5)
    grey_B1HW = x_BCHW.mean(1, keepdim=True)
    x_BCHW = grey_B1HW + (x_BCHW - grey_B1HW) * (2 * saturated_B111)
    mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
    return mean_B111 + (x_BCHW - mean_B111) * (contrast_B111 + 0.5)


def translation(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """Each image moved by its own whole number of pixels in each direction."""
    _, _, height, width = x_BCHW.shape
    most_y, most_x = (height + 4) // 8, (width + 4) // 8
    down_B, right_B = rng.integers(2 * most_y + 1), rng.integers(2 * most_x + 1)
    padded_BCHW = F.pad(x_BCHW, (most_x, most_x, most_y, most_y))
    rows_BH = down_B[:, None] + torch.arange(height, device=x_BCHW.device)
    columns_BW = right_B[:, None] + torch.arange(width, device=x_BCHW.device)
    image_B = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
    moved_BHWC = padded_BCHW.permute(0, 2, 3, 1)[image_B, rows_BH[:, :, None], columns_BW[:, None]]
    return moved_BHWC.permute(0, 3, 1, 2)


def cutout(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """A square of half the side set to zero; part of it may lie outside."""
    _, _, height, width = x_BCHW.shape
    inside = []
    for side, hole in ((height, height // 2), (width, width // 2)):
        centre_B1 = rng.integers(side + 1 - hole % 2)[:, None]
        at_S = torch.arange(side, device=x_BCHW.device)
        inside.append((at_S >= centre_B1 - hole // 2) & (at_S < centre_B1 - hole // 2 + hole))
    hole_BHW = inside[0][:, :, None] & inside[1][:, None]
    return x_BCHW * ~hole_BHW[:, None]


_CHANGES = {"colour": colour, "translation": translation, "cutout": cutout}

COMPONENT = DiffAugment
