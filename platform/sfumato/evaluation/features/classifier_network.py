"""The network behind the `classifier` features.

Its size follows the images. A stem, one or two stages of two convolutions, and two linear layers; poolings
bring the shorter side down to about 4, those beyond the stages' own in the stem, where they are cheapest.
Batch normalisation keeps the scale of an image: group normalisation would give noise the same activations as
a picture, and put its features among those of real images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST_SIDE = 4
POOLED_SIDE = 2
STAGES = 2


class Classifier(nn.Module):
    """`forward` takes images [B, C, H, W] float32 in [-1, 1] and gives the features [B, dim] (the output of
    the first linear layer) and the logits [B, classes + 1], the last of which stands for damaged images.

    `macs`: multiplications of one forward pass of one image.
    """

    def __init__(self, channels: int, height: int, width: int, classes: int, *, base: int, dim: int) -> None:
        super().__init__()
        poolings = max(1, round(math.log2(min(height, width) / LOWEST_SIDE)))
        stages = min(STAGES, poolings)
        shape = _Shape(height, width)
        layers: list[nn.Module] = _stem(channels, base, poolings - stages, shape)
        width_in = base
        for stage in range(stages):
            width_out = base * 2 ** (stage + 1)
            layers += [*_convolution(width_in, width_out, shape, pool=True)]
            layers += [*_convolution(width_out, width_out, shape)]
            width_in = width_out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(POOLED_SIDE), nn.Flatten())
        self.embed = nn.Linear(width_in * POOLED_SIDE**2, dim)
        self.head = nn.Linear(dim, classes + 1)
        self.classes = classes
        self.macs = shape.macs + width_in * POOLED_SIDE**2 * dim + dim * classes
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = self.embed(self.body(x_BCHW.contiguous(memory_format=torch.channels_last)))
        return features_BD, self.head(F.silu(features_BD))


class _Shape:
    """The size of the images at the layer that is being added, and the multiplications so far."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.macs = height, width, 0

    def convolve(self, inner: int, outer: int, kernel: int, stride: int = 1) -> None:
        self.shrink(stride)
        self.macs += inner * outer * kernel**2 * self.height * self.width

    def shrink(self, factor: int) -> None:
        self.height, self.width = max(1, self.height // factor), max(1, self.width // factor)


def _stem(channels: int, base: int, poolings: int, shape: _Shape) -> list[nn.Module]:
    """A convolution, and as many halvings of the sides: the last by pooling, the others by its stride."""
    stride = 2 ** max(0, poolings - 1)
    kernel = 3 if stride == 1 else 2 * stride
    shape.convolve(channels, base, kernel, stride)
    found: list[nn.Module] = [
        nn.Conv2d(channels, base, kernel, stride, padding=(kernel - 1) // 2, bias=False),
        _normalisation(base),
        nn.SiLU(),
    ]
    if poolings:
        found.append(nn.MaxPool2d(2))
        shape.shrink(2)
    return found


def _convolution(inner: int, outer: int, shape: _Shape, *, pool: bool = False) -> list[nn.Module]:
    shape.convolve(inner, outer, 3)
    found: list[nn.Module] = [nn.Conv2d(inner, outer, 3, padding=1, bias=False)]
    if pool:
        found.append(nn.MaxPool2d(2))
        shape.shrink(2)
    return [*found, _normalisation(outer), nn.SiLU()]


def _normalisation(channels: int) -> nn.BatchNorm2d:
    """Holds the statistics of the last batch alone. Training averages them together with the weights that
    they belong to; a running average of their own would lag behind, and ruin the figures of short trainings.
    """
    return nn.BatchNorm2d(channels, momentum=1.0)
