"""The distributions of pixels given a latent, and what divides an image's nats into bits a dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.family import EIGHT_BIT
from sfumato.core.rng import Rng
from sfumato.families.vae.config import BernoulliConfig, LogisticConfig
from sfumato.layers import discretized_logistic

LIKELIHOODS = BernoulliConfig | LogisticConfig


class Likelihood(nn.Module):
    """p(x | decoder output), factorised over pixels and channels."""

    def __init__(self, config: LIKELIHOODS, channels: int) -> None:
        super().__init__()
        self._config = config
        self._channels = channels
        own = isinstance(config, LogisticConfig) and config.scale == "channel"
        self.log_scale_C11 = nn.Parameter(torch.full((channels, 1, 1), -1.5)) if own else None

    @property
    def outputs(self) -> int:
        """How many channels the decoder has to give."""
        pixel = isinstance(self._config, LogisticConfig) and self._config.scale == "pixel"
        return self._channels * (2 if pixel else 1)

    def log_prob(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Nats of each image, [B], for targets that `target` gave."""
        if isinstance(self._config, BernoulliConfig):
            each = -F.binary_cross_entropy_with_logits(output_BOHW, (x_BCHW + 1) / 2, reduction="none")
        else:
            each = discretized_logistic.log_prob(x_BCHW, *self._mean_and_scale(output_BOHW))
        return each.flatten(1).sum(dim=1)

    def mean(self, output_BOHW: Tensor) -> Tensor:
        """The expected image, [B, C, H, W] in [-1, 1]."""
        if isinstance(self._config, BernoulliConfig):
            return 2 * torch.sigmoid(output_BOHW) - 1
        return self._mean_and_scale(output_BOHW)[0].clamp(-1, 1)

    def draw(self, output_BOHW: Tensor, uniform_BCHW: Tensor) -> Tensor:
        """An image [B, C, H, W] in [-1, 1] for each set of uniform numbers."""
        if isinstance(self._config, BernoulliConfig):
            return (uniform_BCHW < torch.sigmoid(output_BOHW)).float() * 2 - 1
        return discretized_logistic.sample(*self._mean_and_scale(output_BOHW), uniform_BCHW)

    def _mean_and_scale(self, output_BOHW: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_scale_C11 is not None:
            return output_BOHW, self.log_scale_C11.float()
        mean, log_scale = output_BOHW.chunk(2, dim=1)
        return mean, log_scale


def target(config: LIKELIHOODS, image_BCHW: Tensor, rng: Rng) -> Tensor:
    """What the likelihood is of: the image, or its binarisation, in [-1, 1]."""
    if isinstance(config, LogisticConfig):
        return image_BCHW
    if config.binarization == "threshold":
        white = image_BCHW > 0
    else:
        # The noise of an evaluation is drawn on the CPU, wherever the images are.
        white = rng.uniform(*image_BCHW.shape[1:]).to(image_BCHW.device) < (image_BCHW + 1) / 2
    return white.to(image_BCHW.dtype) * 2 - 1


def describe(config: LIKELIHOODS) -> str:
    """What `target` gives, in words."""
    if isinstance(config, LogisticConfig):
        return EIGHT_BIT
    how = "at the middle" if config.binarization == "threshold" else "by chance in proportion to its values"
    return f"the image made black and white {how}"


def bits_per_dim(nats_B: Tensor, dims: int) -> Tensor:
    """Nats of an image in bits a dimension, [B]."""
    return nats_B / (dims * math.log(2))
