"""The discretised logistic distribution over pixel levels, alone and as a mixture with coupled channels.

A level v of L lies at 2 v / (L - 1) - 1 in [-1, 1]. Its probability is the mass of a logistic density in the
bin of width 2 / (L - 1) around it; the first and the last bin reach to infinity, so that the masses add up
to one (Kingma et al. 2016, eq. in App. D; Salimans et al. 2017, "PixelCNN++", eq. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_LOG_SCALE = -7.0
"""Below this a bin of 256 levels holds all of the mass, and gradients are noise (as in PixelCNN++)."""
MAX_LOG_SCALE = 60.0
"""Far above this the width of a bin, in units of the scale, is zero in float32, and so is its mass."""


def log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256) -> Tensor:
    """Log-probability of the level at `x` in [-1, 1], elementwise, in nats, float32.

    All tensors broadcast; `log_scale` is clamped to `MIN_LOG_SCALE` and `MAX_LOG_SCALE`. `x` must be on the
    grid of levels.
    """
    log_scale = log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
    half_bin = 1.0 / (levels - 1)
    inverse = torch.exp(-log_scale)
    upper = (x - mean + half_bin) * inverse
    lower = (x - mean - half_bin) * inverse
    # s(u) - s(l) = s(u) s(-l) (1 - exp(l - u)), which never subtracts nearly equal numbers.
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    edge = 1.0 - half_bin
    return torch.where(x < -edge, F.logsigmoid(upper), torch.where(x > edge, F.logsigmoid(-lower), inside))


def sample(mean: Tensor, log_scale: Tensor, uniform: Tensor, levels: int = 256) -> Tensor:
    """A draw for each uniform number in [0, 1), on the grid of levels in [-1, 1]."""
    u = uniform.clamp(1e-5, 1 - 1e-5)
    scale = torch.exp(log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    x = mean + scale * (torch.log(u) - torch.log1p(-u))
    return to_level((x.clamp(-1, 1) + 1) * (levels - 1) / 2, levels)


def to_level(value: Tensor, levels: int) -> Tensor:
    """The point in [-1, 1] of the level nearest to `value` in [0, levels - 1]."""
    return value.round().clamp(0, levels - 1) * 2 / (levels - 1) - 1


class Mixture:
    """K discretised logistics per pixel whose channels depend on one another (PixelCNN++, eq. 3).

    The mean of channel c is shifted by a linear function of the channels before it, with coefficients that
    the network predicts: red is free, green depends on red, blue on both.
    """

    def __init__(self, parameters_BPHW: Tensor, channels: int, components: int, levels: int = 256) -> None:
        """`parameters_BPHW` has P = `Mixture.size(channels, components)` channels."""
        b, _, h, w = parameters_BPHW.shape
        shared = components * channels
        sizes = [components, shared, shared, components * pairs(channels)]
        logits, mean, log_scale, coefficients = torch.split(parameters_BPHW.float(), sizes, dim=1)
        self._log_weights_BKHW = F.log_softmax(logits, dim=1)
        self._mean_BKCHW = mean.view(b, components, channels, h, w)
        self._log_scale_BKCHW = log_scale.view(b, components, channels, h, w)
        self._coefficients_BKPHW = torch.tanh(coefficients.view(b, components, pairs(channels), h, w))
        self._channels, self._levels = channels, levels

    @staticmethod
    def size(channels: int, components: int) -> int:
        """The number of parameters per pixel."""
        return components * (1 + 2 * channels + pairs(channels))

    def log_prob(self, x_BCHW: Tensor) -> Tensor:
        """Log-probability of each pixel with all its channels, in nats, [B, H, W]."""
        means = [self._mean(channel, x_BCHW.unsqueeze(1)) for channel in range(self._channels)]
        each_BKCHW = log_prob(
            x_BCHW.unsqueeze(1), torch.stack(means, dim=2), self._log_scale_BKCHW, self._levels
        )
        return torch.logsumexp(each_BKCHW.sum(dim=2) + self._log_weights_BKHW, dim=1)

    def sample(self, uniform_BUHW: Tensor) -> Tensor:
        """A draw [B, C, H, W] in [-1, 1] from uniform numbers: one selects the component, C its values."""
        chosen_B1HW = _categorical(self._log_weights_BKHW, uniform_BUHW[:, :1])
        drawn: list[Tensor] = []
        for channel in range(self._channels):
            before_B1CHW = torch.cat(drawn, dim=1).unsqueeze(1) if drawn else None
            mean_B1HW = self._mean(channel, before_B1CHW).gather(1, chosen_B1HW)
            scale_B1HW = self._log_scale_BKCHW[:, :, channel].gather(1, chosen_B1HW)
            noise_B1HW = uniform_BUHW[:, channel + 1 : channel + 2]
            drawn.append(sample(mean_B1HW, scale_B1HW, noise_B1HW, self._levels))
        return torch.cat(drawn, dim=1)

    def center(self) -> Tensor:
        """The mean of the likeliest component, its channels one after the other, [B, C, H, W] in [-1, 1]."""
        chosen_B1HW = self._log_weights_BKHW.argmax(dim=1, keepdim=True)
        found: list[Tensor] = []
        for channel in range(self._channels):
            before_B1CHW = torch.cat(found, dim=1).unsqueeze(1) if found else None
            found.append(self._mean(channel, before_B1CHW).gather(1, chosen_B1HW).clamp(-1, 1))
        return torch.cat(found, dim=1)

    def _mean(self, channel: int, x_B1CHW: Tensor | None) -> Tensor:
        """The means of a channel given those before it, [B, K, H, W]."""
        mean_BKHW = self._mean_BKCHW[:, :, channel]
        first = pairs(channel)
        for before in range(channel):
            assert x_B1CHW is not None
            mean_BKHW = mean_BKHW + self._coefficients_BKPHW[:, :, first + before] * x_B1CHW[:, :, before]
        return mean_BKHW


def pairs(channels: int) -> int:
    """The number of pairs of a channel and an earlier one."""
    return channels * (channels - 1) // 2


def _categorical(log_weights_BKHW: Tensor, uniform_B1HW: Tensor) -> Tensor:
    """By inversion of the cumulative weights: int64 [B, 1, H, W]."""
    cumulative = log_weights_BKHW.exp().cumsum(dim=1)
    chosen = (uniform_B1HW > cumulative).sum(dim=1, keepdim=True)
    return chosen.clamp(max=log_weights_BKHW.shape[1] - 1)
