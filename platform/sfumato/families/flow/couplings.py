"""Affine couplings: a part of the image is scaled and shifted by a network of the rest.

    Glow      y_b = s (x_b + t),       s = sigmoid(h + 2)             Kingma & Dhariwal 2018, table 1 and code
    Real NVP  y_b = exp(s) x_b + t,    s = gain tanh(h)               Dinh et al. 2017, eq. 7, 8, and code

Networks end in zeros, so that a coupling is the same for every image before training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.bijection import ActNorm, Bijection, sum_pixels


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts at zero, with a learned gain exp(3 g) (ibid., sec. 3.3 and code)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.log_gain = nn.Parameter(torch.zeros(outputs))
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(x_BCHW).float() * (3 * self.log_gain).exp()[:, None, None]
        return out_BCHW


class GlowNet(nn.Module):
    """3x3, 1x1, 3x3 convolutions with actnorm between them; the class is added to the first."""

    def __init__(self, inputs: int, outputs: int, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)
        self.first_norm = ActNorm(channels)
        self.embedding = nn.Embedding(classes, channels) if classes else None
        self.second = nn.Conv2d(channels, channels, 1, bias=False)
        self.second_norm = ActNorm(channels)
        self.last = ZeroConv(channels, outputs)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, 0.0, 0.05)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        h_BCHW, _ = self.first_norm(self.first(x_BCHW))
        if self.embedding is not None:
            h_BCHW = h_BCHW + self.embedding(label_B)[:, :, None, None]
        h_BCHW, _ = self.second_norm(self.second(F.relu(h_BCHW)))
        out_BCHW: Tensor = self.last(F.relu(h_BCHW))
        return out_BCHW


class ResidualNet(nn.Module):
    """Residual blocks of two 3x3 convolutions, with actnorm instead of Real NVP's batch normalisation."""

    def __init__(self, inputs: int, outputs: int, channels: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, 1, 1)
        self.embedding = nn.Embedding(classes, channels) if classes else None
        self.blocks = nn.ModuleList(_Residual(channels) for _ in range(blocks))
        self.norm = ActNorm(channels)
        self.last = ZeroConv(channels, outputs)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        h_BCHW = self.first(x_BCHW)
        if self.embedding is not None:
            h_BCHW = h_BCHW + self.embedding(label_B)[:, :, None, None]
        for block in self.blocks:
            h_BCHW = block(h_BCHW)
        h_BCHW, _ = self.norm(h_BCHW)
        out_BCHW: Tensor = self.last(F.relu(h_BCHW))
        return out_BCHW


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ActNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = ActNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW, _ = self.norm1(x_BCHW)
        h_BCHW, _ = self.norm2(self.conv1(F.relu(h_BCHW)))
        out_BCHW: Tensor = x_BCHW + self.conv2(F.relu(h_BCHW))
        return out_BCHW


class GlowCoupling(Bijection):
    """The first half of the channels controls the second."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.kept = channels // 2
        self.net = GlowNet(self.kept, 2 * (channels - self.kept), hidden, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        a_BCHW, b_BCHW = self._split(x_BCHW)
        log_s_BCHW, t_BCHW = self._affine(a_BCHW, label_B)
        y_BCHW = torch.cat([a_BCHW, (b_BCHW + t_BCHW) * log_s_BCHW.exp()], 1)
        return y_BCHW, sum_pixels(log_s_BCHW)

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        a_BCHW, b_BCHW = self._split(y_BCHW)
        log_s_BCHW, t_BCHW = self._affine(a_BCHW, label_B)
        return torch.cat([a_BCHW, b_BCHW * (-log_s_BCHW).exp() - t_BCHW], 1)

    def _split(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return x_BCHW[:, : self.kept], x_BCHW[:, self.kept :]

    def _affine(self, a_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        h_BCHW, t_BCHW = self.net(a_BCHW, label_B).chunk(2, 1)
        return F.logsigmoid(h_BCHW + 2), t_BCHW


class MaskedCoupling(Bijection):
    """The values under the mask rule the others: one colour of a checkerboard, or half the channels.

    `context` more channels, the same for both directions, may be given to the network.
    """

    mask: Tensor

    def __init__(
        self,
        mask_CHW: Tensor,
        hidden: int,
        blocks: int,
        classes: int,
        context: int = 0,
    ) -> None:
        super().__init__()
        channels = len(mask_CHW)
        self.register_buffer("mask", mask_CHW, persistent=False)
        self.net = ResidualNet(channels + context, 2 * channels, hidden, blocks, classes)
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(
        self, x_BCHW: Tensor, label_B: Tensor, context_BCHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        s_BCHW, t_BCHW = self._affine(x_BCHW, label_B, context_BCHW)
        return x_BCHW * s_BCHW.exp() + t_BCHW, sum_pixels(s_BCHW)

    def inverse(self, y_BCHW: Tensor, label_B: Tensor, context_BCHW: Tensor | None = None) -> Tensor:
        s_BCHW, t_BCHW = self._affine(y_BCHW, label_B, context_BCHW)
        return (y_BCHW - t_BCHW) * (-s_BCHW).exp()

    def _affine(self, x_BCHW: Tensor, label_B: Tensor, context_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Zero where the mask is, so that these values pass as they are."""
        seen_BCHW = x_BCHW * self.mask
        if context_BCHW is not None:
            seen_BCHW = torch.cat([seen_BCHW, context_BCHW], 1)
        h_BCHW, t_BCHW = self.net(seen_BCHW, label_B).chunk(2, 1)
        free_CHW = 1 - self.mask
        return self.gain[:, None, None] * h_BCHW.tanh() * free_CHW, t_BCHW * free_CHW


def checkerboard(shape: tuple[int, int, int], colour: int) -> Tensor:
    """1 on the squares (h + w) mod 2 == colour, [C, H, W]."""
    channels, height, width = shape
    squares_HW = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == colour
    return squares_HW.float().expand(channels, height, width).clone()


def half_channels(shape: tuple[int, int, int], half: int) -> Tensor:
    """1 on the first (0) or second (1) half of the channels, [C, H, W]."""
    mask_CHW = torch.zeros(shape)
    middle = shape[0] // 2
    mask_CHW[:middle] = 1 - half
    mask_CHW[middle:] = half
    return mask_CHW
