"""The discriminator of patches (PatchGAN; Isola et al. 2017, app. 6.1.2): a score for each of them."""

from __future__ import annotations

from torch import Tensor, nn

GROUPS = 4
"""Groups of a normalisation: rows must not influence one another, as batch normalisation would let them."""


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] to scores [B, h, w]; `layers` convolutions halve the side, two lower it by one."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        found: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            found += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, 1, bias=False),
                nn.GroupNorm(GROUPS, widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        found.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*found)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scores: Tensor = self.layers(x_BCHW)[:, 0].float()
        return scores


def least_side(layers: int) -> int:
    """The least side of an image that leaves one score."""
    return 3 << layers
