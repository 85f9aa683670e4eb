"""Changes that a message has to survive in training: each image meets one of them, drawn at random.

All are differentiable. JPEG is that of one plane at a time, without the halved colours, whose rounding passes
gradients as they are (Shin and Song 2017 round smoothly instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.rng import Rng

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From images [B, C, H, W] in [-1, 1], a number in [0, 1) for each [B, 1, 1, 1] and noise of their shape."""

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation at quality 50 (ITU-T T.81, table K.1)."""


def nothing(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """The images."""
    return x


def noisy(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """Normal noise of up to 13 of 255 levels."""
    return x + 0.1 * u * noise


def brighter(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """0.6 to 1.4 times as bright."""
    return ((x + 1) * (0.6 + 0.8 * u) - 1).clamp(-1, 1)


def blurred(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """A Gaussian of deviation 1, over 5 pixels."""
    line = torch.exp(-torch.arange(-2, 3, device=x.device, dtype=x.dtype).square() / 2)
    line = line / line.sum()
    kernel = (line[:, None] * line[None]).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), "replicate"), kernel, groups=x.shape[1])


def resized(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """To half the size and back."""
    half = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    return F.interpolate(half, x.shape[2:], mode="bilinear")


def cropped(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """A part of 0.75 to 1 of each side, in the middle, at the size of the whole."""
    scale = (0.75 + 0.25 * u).view(-1, 1, 1)
    theta = torch.eye(2, 3, device=x.device, dtype=x.dtype) * scale
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False, padding_mode="reflection")


def jpeg(x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """Quality 50 to 95."""
    quality = 50 + 45 * u
    table = torch.tensor(_LUMINANCE, device=x.device, dtype=x.dtype) * (2 - quality / 50)
    steps = table.clamp(min=1)[:, :, None, None]  # [B, 1, 1, 1, 8, 8]
    down, across = (-x.shape[2] % 8, -x.shape[3] % 8)
    padded = F.pad(x, (0, across, 0, down), "replicate") * 127.5
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
    transform = _cosines().to(x)
    spectrum = transform @ blocks @ transform.T
    exact = spectrum / steps
    rounded = exact + (exact.round() - exact).detach()
    found = (transform.T @ (rounded * steps) @ transform).transpose(3, 4).reshape(padded.shape)
    return (found[..., : x.shape[2], : x.shape[3]] / 127.5).clamp(-1, 1)


ATTACKS: dict[str, Attack] = {
    "nothing": nothing,
    "noise": noisy,
    "brightness": brighter,
    "blur": blurred,
    "resize": resized,
    "crop": cropped,
    "jpeg": jpeg,
}


def drawn(names: tuple[str, ...], rng: Rng) -> Callable[[Tensor], Tensor]:
    """One of these attacks for each image."""
    which = rng.integers(len(names))
    u = rng.uniform().view(-1, 1, 1, 1)

    def attacked(x_BCHW: Tensor) -> Tensor:
        noise = rng.normal(*x_BCHW.shape[1:])
        made = [ATTACKS[name](x_BCHW, u, noise) for name in names]
        chosen = F.one_hot(which, len(names)).to(x_BCHW).T[..., None, None, None]
        return (torch.stack(made) * chosen).sum(0)

    return attacked


@cache
def _cosines() -> Tensor:
    """The orthonormal DCT-II of 8 values, [8, 8]."""
    rows = [[math.cos(math.pi * (2 * x + 1) * k / 16) for x in range(8)] for k in range(8)]
    matrix = torch.tensor(rows) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
