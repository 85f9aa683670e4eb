"""Lookup-free quantisation: the signs of the channels are the code (MAGVIT-v2; Yu et al. 2024, eq. 3 to 5).

With codes in proportion to exp(-|z - code|^2 / 2t), channel c is positive with p_c = sigmoid(2 z_c / t). The
loss rewards decided channels and evenly used signs,

    loss = entropy * (E[sum_c H(p_c)] - sum_c H(E[p_c])) + commitment * |z - sign(z)|^2

where E is the mean over an image's positions. The second entropy is that of independent channels, as in
binary spherical quantisation (Zhao et al. 2024, sec. 3.2): an upper bound on that of the codes, which needs
no sum over 2^C codes.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.vae.quantizers import Quantized, Quantizer, QuantizerConfig


class LookupFree(QuantizerConfig):
    """The signs of the channels, without a codebook (MAGVIT-v2; Yu et al. 2024)."""

    kind: Literal["lookup_free"] = Field("lookup_free", description="Selects lookup-free quantisation.")
    bits: int = Field(10, ge=1, le=30, description="Channels that are quantised: there are 2^bits codes.")
    entropy: float = Field(0.1, ge=0, description="Weight of the entropy terms.")
    temperature: float = Field(1.0, gt=0, description="t: the larger, the less decided a channel counts as.")
    commitment: float = Field(0.25, ge=0, description="Weight of the distance from the signs.")

    @property
    def codes(self) -> int:
        return 1 << self.bits

    @classmethod
    def tiny(cls) -> Self:
        """Four bits."""
        return cls(bits=4)

    def build(self, channels: int) -> LookupFreeQuantizer:
        """Without a codebook; linear maps convert where `channels` differs from `bits`."""
        return LookupFreeQuantizer(self, channels)


class LookupFreeQuantizer(Quantizer):
    """Signs, and gradients that go straight through."""

    places: Tensor

    def __init__(self, config: LookupFree, channels: int) -> None:
        super().__init__()
        self._config = config
        same = channels == config.bits
        self.into = nn.Identity() if same else nn.Conv2d(channels, config.bits, 1)
        self.out = nn.Identity() if same else nn.Conv2d(config.bits, channels, 1)
        places = 1 << torch.arange(config.bits)
        self.register_buffer("places", places[:, None, None], persistent=False)

    def forward(self, z_BChw: Tensor) -> Quantized:
        config = self._config
        z_BChw = self.into(z_BChw).float()
        sign_BChw = torch.where(z_BChw > 0, 1.0, -1.0)
        codes_Bhw = ((z_BChw > 0) * self.places).sum(dim=1)
        logit_BChw = 2 * z_BChw / config.temperature
        each_B = _entropy(logit_BChw).flatten(2).mean(dim=2).sum(dim=1)
        mean_BC = logit_BChw.sigmoid().flatten(2).mean(dim=2)
        used_B = -(torch.xlogy(mean_BC, mean_BC) + torch.xlogy(1 - mean_BC, 1 - mean_BC)).sum(dim=1)
        far_B = (z_BChw - sign_BChw).square().flatten(1).mean(dim=1)
        loss_B = config.entropy * (each_B - used_B) + config.commitment * far_B
        return Quantized(self.out(z_BChw + (sign_BChw - z_BChw).detach()), codes_Bhw, loss_B)

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' signs, mapped to [B, C, h, w]."""
        bits_BChw = (codes_Bhw[:, None] & self.places) != 0
        vectors: Tensor = self.out(torch.where(bits_BChw, 1.0, -1.0))
        return vectors


def _entropy(logit: Tensor) -> Tensor:
    """Of a coin with this logit, in nats: -p log p - (1 - p) log(1 - p)."""
    p = logit.sigmoid()
    return -(p * F.logsigmoid(logit) + (1 - p) * F.logsigmoid(-logit))


COMPONENT = LookupFree
