"""Images that no data set holds, from which the classifier learns what is no image of its data.

A classifier that only ever sees real images may give noise the features of any class, and a metric on its
features then takes noise for real. So it learns one class more, of damaged images (outlier exposure:
Hendrycks et al. 2019, here with a class of its own for outliers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = 5


def damaged(x_BCHW: Tensor) -> Tensor:
    """As many images in [-1, 1] as given, of five kinds: noise, the image's own pixels in another order, the
    image under strong noise, what is left of it at a quarter of its size, and its mean with another.
    """
    parts = [x_BCHW[kind::KINDS] for kind in range(KINDS)]
    noise, shuffled, noisy, coarse, mixed = parts
    strength_B111 = 0.5 + torch.rand(len(noisy), 1, 1, 1)
    other = x_BCHW[torch.randperm(len(x_BCHW))[: len(mixed)]]
    made = [
        torch.rand_like(noise) * 2 - 1,
        _shuffled(shuffled),
        (noisy + strength_B111 * torch.randn_like(noisy)).clamp(-1, 1),
        _coarse(coarse),
        (mixed + other) / 2,
    ]
    return torch.cat(made)


def _shuffled(x_BCHW: Tensor) -> Tensor:
    pixels_BCP = x_BCHW.flatten(2)
    order_B1P = torch.rand(len(x_BCHW), 1, pixels_BCP.shape[2]).argsort(2)
    return pixels_BCP.gather(2, order_B1P.expand_as(pixels_BCP)).view_as(x_BCHW)


def _coarse(x_BCHW: Tensor) -> Tensor:
    height, width = x_BCHW.shape[2:]
    small = F.adaptive_avg_pool2d(x_BCHW, (max(1, height // 4), max(1, width // 4)))
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
