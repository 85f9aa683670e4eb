"""The hiding and the reading network (after HiDDeN, Zhu et al. 2018, sec. 3), fully convolutional but for
the last layer: they take images of any size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.messages import LENGTH

GRID = 4
"""Side of the grid of features that bits are read from."""
_MESSAGE = 8
"""Side of the grid that a message is spread over."""
_GROUPS = 4


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(_GROUPS, outputs), nn.GELU())


class Hiding(nn.Module):
    """Adds a residual of at most `strength` to images; the message is laid over them as further channels."""

    def __init__(self, channels: int, width: int, depth: int, strength: float) -> None:
        super().__init__()
        self._strength, self._width = strength, width
        self.message = nn.Linear(LENGTH, width * _MESSAGE**2)
        self.image = _block(channels, width)
        self.blocks = nn.Sequential(
            _block(2 * width + channels, width), *(_block(width, width) for _ in range(depth - 1))
        )
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, x_BCHW: Tensor, bits_BK: Tensor) -> Tensor:
        """The images with their messages (0 or 1 each), in [-1, 1]."""
        spread = self.message(bits_BK * 2 - 1).unflatten(1, (self._width, _MESSAGE, _MESSAGE))
        spread = F.interpolate(spread, x_BCHW.shape[2:], mode="bilinear")
        features = self.blocks(torch.cat([self.image(x_BCHW), spread, x_BCHW], 1))
        marked: Tensor = x_BCHW + self._strength * self.last(features).tanh()
        return marked.clamp(-1, 1)


class Reading(nn.Module):
    """Log odds of each bit."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        layers = [_block(channels, width), _block(width, 2 * width, 2)]
        layers += [_block(2 * width, 2 * width) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Linear(2 * width * GRID**2, LENGTH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, 32]."""
        found: Tensor = self.last(F.adaptive_avg_pool2d(self.blocks(x_BCHW), GRID).flatten(1))
        return found


class Pair(nn.Module):
    """Both, which train together."""

    def __init__(self, channels: int, width: int, depth: int, strength: float) -> None:
        super().__init__()
        self.hiding = Hiding(channels, width, depth, strength)
        self.reading = Reading(channels, width, depth)

    def forward(self, x_BCHW: Tensor, bits_BK: Tensor, attack: Any) -> tuple[Tensor, Tensor]:
        """The marked images, and what is read after `attack` has changed them."""
        marked = self.hiding(x_BCHW, bits_BK)
        return marked, self.reading(attack(marked))

    def read(self, x_BCHW: Tensor) -> Tensor:
        """Log odds of each bit, [B, 32]."""
        found: Tensor = self.reading(x_BCHW)
        return found
