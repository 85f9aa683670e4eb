"""PatchGAN: a discriminator that scores every patch of an image, not the whole (Isola et al. 2017, sec.
3.2.2)."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.config import Config
from sfumato.families.translation.blocks import LEAK, init_normal, normalised

MOST = 8


class PatchConfig(Config):
    """Size of the discriminator; 3 halvings see patches of 70 pixels."""

    width: int = Field(
        64, ge=1, description="Channels after the first halving; up to 8 times as many follow."
    )
    halvings: int = Field(3, ge=1, description="How often the side is halved: 1 sees 16 pixels, 2 34, 3 70.")

    def problems(self, height: int, width: int) -> list[str]:
        """Sides of which no patch would remain."""
        side = min(height, width)
        if (side >> self.halvings) > 2:
            return []
        most = max(1, (side // 3).bit_length() - 1)
        problem = (
            f"model.discriminator.halvings: {self.halvings} leave no patch of a side of {side}; use at most "
            f"{most}"
        )
        return [problem]


class PatchDiscriminator(nn.Module):
    """Scores [B, h, w], high where a patch looks real."""

    def __init__(self, config: PatchConfig, inputs: int, *, gains: bool) -> None:
        """`gains` are those of the normalisation."""
        super().__init__()
        widths = [config.width * min(MOST, 1 << at) for at in range(config.halvings + 1)]
        self.layers = nn.ModuleList(
            _Layer(a, b, stride=2 if at < config.halvings else 1, normed=at > 0, gains=gains)
            for at, (a, b) in enumerate(pairwise([inputs, *widths]))
        )
        self.score = nn.Conv2d(widths[-1], 1, 4, 1, 1)
        init_normal(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        score_BHW: Tensor = self.score(x_BCHW).squeeze(1).float()
        return score_BHW


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, normed: bool, gains: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=not normed)
        self.norm = normalised(outputs, gains=gains) if normed else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(x_BCHW)
        return F.leaky_relu(x_BCHW if self.norm is None else self.norm(x_BCHW), LEAK)
