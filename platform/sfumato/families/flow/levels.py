"""Levels of the multi-scale architecture: reshape, transform, split off half as latents.

Both kinds of network are lists of levels (Dinh et al. 2017, sec. 3.6; Kingma & Dhariwal 2018, fig. 2b).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.families.flow.bijection import Bijection, Decoding, squeeze, sum_pixels, unsqueeze
from sfumato.families.flow.couplings import ZeroConv

Shape = tuple[int, int, int]


def normal_log_density(z_BCHW: Tensor) -> Tensor:
    """log N(z; 0, I) of each row, [B]."""
    return sum_pixels(-0.5 * (z_BCHW.square() + math.log(2 * math.pi)))


class Squeeze(Bijection):
    """Squares of pixels, 2x2 if not said otherwise, become channels."""

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self._side = side

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        return squeeze(x_BCHW, self._side), x_BCHW.new_zeros(len(x_BCHW))

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return unsqueeze(y_BCHW, self._side)


class Prior(nn.Module):
    """The normal distribution of a level's latents: learned from the rest (Glow), or standard (Real NVP).

    The last level passes nothing on, and learns a mean and scale for each class.
    """

    def __init__(self, kept: int, latent: int, classes: int, *, learned: bool) -> None:
        super().__init__()
        self.net = ZeroConv(kept, 2 * latent) if learned and kept else None
        self.table = nn.Embedding(max(1, classes), 2 * latent) if learned and not kept else None
        if self.table is not None:
            nn.init.zeros_(self.table.weight)

    def forward(self, kept_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, each broadcast to the latents."""
        if self.net is not None:
            mean_BCHW, log_std_BCHW = self.net(kept_BCHW).chunk(2, 1)
        elif self.table is not None:
            mean_BCHW, log_std_BCHW = self.table(label_B)[:, :, None, None].float().chunk(2, 1)
        else:
            mean_BCHW = log_std_BCHW = torch.zeros((), device=label_B.device)
        return mean_BCHW, log_std_BCHW


class Level(nn.Module):
    """Bijections, then the split into a part passed on and latents.

    `latent_shape` and `out_shape` are those of an image; the last level keeps nothing (0 channels).
    """

    def __init__(self, steps: list[Bijection], shape: Shape, classes: int, *, last: bool, learned: bool):
        super().__init__()
        channels, height, width = shape
        kept = 0 if last else channels // 2
        self.steps = nn.ModuleList(steps)
        self.prior = Prior(kept, channels - kept, classes, learned=learned)
        self.kept = kept
        self.latent_shape = (channels - kept, height, width)
        self.out_shape = (kept, height, width)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The part passed on, and the log density that this level adds, [B]."""
        density_B = torch.zeros(len(x_BCHW), device=x_BCHW.device)
        for step in self.steps:
            x_BCHW, log_det_B = step(x_BCHW, label_B)
            density_B = density_B + log_det_B
        kept_BCHW, z_BCHW = x_BCHW[:, : self.kept], x_BCHW[:, self.kept :]
        mean_BCHW, log_std_BCHW = self.prior(kept_BCHW, label_B)
        noise_BCHW = (z_BCHW - mean_BCHW) * (-log_std_BCHW).exp()
        density_B = density_B + normal_log_density(noise_BCHW)
        return kept_BCHW, density_B - sum_pixels(log_std_BCHW.expand_as(z_BCHW))

    def encode(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The part passed on, and the noise of `latent_shape`: what `inverse` takes."""
        for step in self.steps:
            x_BCHW = step(x_BCHW, label_B)[0]
        kept_BCHW, z_BCHW = x_BCHW[:, : self.kept], x_BCHW[:, self.kept :]
        mean_BCHW, log_std_BCHW = self.prior(kept_BCHW, label_B)
        return kept_BCHW, (z_BCHW - mean_BCHW) * (-log_std_BCHW).exp()

    def inverse(
        self, kept_BCHW: Tensor, noise_BCHW: Tensor, label_B: Tensor, decoding: Decoding | None = None
    ) -> Tensor:
        """The level's input, from the part passed on and standard normal noise of `latent_shape`."""
        decoding = decoding or Decoding()
        mean_BCHW, log_std_BCHW = self.prior(kept_BCHW, label_B)
        x_BCHW = torch.cat([kept_BCHW, mean_BCHW + log_std_BCHW.exp() * noise_BCHW], 1)
        for step in reversed(self.steps):
            assert isinstance(step, Bijection)
            x_BCHW = step.decode(x_BCHW, label_B, decoding)
        return x_BCHW


def squeezed(shape: Shape, side: int = 2) -> Shape:
    """The shape after `Squeeze`."""
    channels, height, width = shape
    return channels * side * side, height // side, width // side
