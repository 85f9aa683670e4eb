"""Blocks of translators and of the discriminator: instance normalisation, initial weights."""

from __future__ import annotations

from torch import nn

STD = 0.02
LEAK = 0.2


def normalised(channels: int, *, gains: bool) -> nn.Module:
    """Each channel of each image to mean 0 and variance 1 (Ulyanov, Vedaldi, Lempitsky 2016); `gains` adds a
    gain and a bias per channel.

    It is what batch normalisation is for one image, with which Pix2Pix is trained.
    """
    return nn.GroupNorm(channels, channels, affine=gains)


def init_normal(network: nn.Module) -> None:
    """Weights from N(0, 0.02^2), gains from N(1, 0.02^2), biases zero (Isola et al. 2017, app. 6.2)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, STD)
        elif isinstance(module, nn.GroupNorm) and module.affine:
            nn.init.normal_(module.weight, 1.0, STD)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
