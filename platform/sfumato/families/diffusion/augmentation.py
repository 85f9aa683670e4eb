"""Images changed before noise is added, of which the network is told how (Karras et al. 2022, app. F.2).

Each change happens to an image with probability p, independently of the others, mirroring always with
probability 1/2. The network sees the numbers that were drawn; samples are drawn with none, so that changes
do not leak. The numbers, with N normal and U uniform:

    mirrored left to right, upside down     0 or 1 each
    scale 2^(0.2 N)                         N
    turn by a = U(-pi, pi)                  cos a - 1, sin a
    stretch 2^(0.2 N) along a direction b   N cos 2b, N sin 2b
    moved by N / 8 of the sides             N, N

The paper filters before it resamples; here points between pixels are bilinear. The paper has b in place of
2b, by which a stretch along b and a shrinking along b + pi are told alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.core.rng import Rng
from sfumato.layers import transforms

CHANGES = 9
"""Numbers that say how an image was changed."""
STRETCH = 0.2 * math.log(2)
MOVE = 1 / 8


def changed(x_BCHW: Tensor, rng: Rng, p: float) -> tuple[Tensor, Tensor]:
    """The images, float32 [B, C, H, W], and how each was changed, [B, `CHANGES`]."""
    height, width = x_BCHW.shape[2:]

    def happens(p: float = p) -> Tensor:
        return (rng.uniform() < p).float()

    mirror_B = rng.integers(2).float()
    upside_B = rng.integers(2) * happens()
    scale_B = rng.normal() * happens()
    turn_B = math.pi * (2 * rng.uniform() - 1) * happens()
    along_B = math.pi * (2 * rng.uniform() - 1)
    stretch_B = rng.normal() * happens()
    moved = happens()
    x_B, y_B = rng.normal() * moved, rng.normal() * moved
    # A matrix maps a pixel of the result to the point of the image that it shows.
    factor_B, longer_B = (-STRETCH * scale_B).exp(), (-STRETCH * stretch_B).exp()
    matrix_B33 = transforms.scaling(1 - 2 * mirror_B, 1 - 2 * upside_B)
    matrix_B33 = matrix_B33 @ transforms.scaling(factor_B, factor_B) @ transforms.rotation(turn_B)
    matrix_B33 = matrix_B33 @ transforms.rotation(along_B) @ transforms.scaling(longer_B, 1 / longer_B)
    matrix_B33 = matrix_B33 @ transforms.rotation(-along_B)
    matrix_B33 = matrix_B33 @ transforms.translation(MOVE * width * x_B, MOVE * height * y_B)
    still_B = ~torch.stack([scale_B, turn_B, stretch_B, x_B, y_B]).any(dim=0)
    # Pixels fall onto pixels: without the rounding of a turn there and back.
    flips_B33 = transforms.scaling(1 - 2 * mirror_B, 1 - 2 * upside_B)
    matrix_B33 = torch.where(still_B[:, None, None], flips_B33, matrix_B33)
    told = [mirror_B, upside_B, scale_B, turn_B.cos() - 1, turn_B.sin()]
    told += [stretch_B * (2 * along_B).cos(), stretch_B * (2 * along_B).sin(), x_B, y_B]
    return transforms.warped(x_BCHW, matrix_B33), torch.stack(told, dim=1)
