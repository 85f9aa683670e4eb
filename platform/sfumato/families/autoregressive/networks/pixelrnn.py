"""PixelRNN (van den Oord, Kalchbrenner, Kavukcuoglu 2016): LSTMs over rows or diagonals of pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.layers.gated import with_ones
from sfumato.families.autoregressive.layers.lstm_layers import DiagonalBiLstm, RowLstm
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.pixel_family import PixelNetworkConfig


class PixelRnnConfig(PixelNetworkConfig):
    """PixelRNN (van den Oord et al. 2016): residual layers of Row LSTM or Diagonal BiLSTM."""

    kind: Literal["pixelrnn"] = Field("pixelrnn", description="Selects PixelRNN.")
    lstm: Literal["row", "diagonal"] = Field(
        "diagonal", description="Which layers: Row LSTM, whose view is a triangle, or Diagonal BiLSTM."
    )
    width: int = Field(16, ge=1, description="h: channels of an LSTM; features have twice as many.")
    layers: int = Field(3, ge=1, description="LSTM layers (paper: 7 on MNIST, 12 on CIFAR-10).")
    head_width: int = Field(32, ge=1, description="Channels of the output layers.")
    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @classmethod
    def tiny(cls) -> Self:
        """One layer of 3 channels."""
        return cls(width=3, layers=1, head_width=4, output=LogisticConfig.tiny())

    def network(self, data: DataSpec, classes: int) -> PixelRnnNetwork:
        """Convolution, LSTMs, output layers."""
        return PixelRnnNetwork(self, data.channels, self.output.size(data.channels), classes)


class ResidualLstm(nn.Module):
    """An LSTM on half of the channels, added to the features (ibid., fig. 5)."""

    def __init__(self, width: int, lstm: Literal["row", "diagonal"]) -> None:
        super().__init__()
        self.into = nn.Conv2d(2 * width, width, 1)
        self.lstm = RowLstm(width) if lstm == "row" else DiagonalBiLstm(width)
        self.out = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        out: Tensor = x_BDHW + self.out(self.lstm(self.into(x_BDHW)))
        return out


class PixelRnnNetwork(nn.Module):
    """From images [B, C, H, W] in [-1, 1] to the parameters of each pixel's distribution, [B, P, H, W]."""

    mask: Tensor

    def __init__(self, config: PixelRnnConfig, channels: int, outputs: int, classes: int) -> None:
        super().__init__()
        width = 2 * config.width
        self.first = nn.Conv2d(channels + 1, width, 7, padding=3)
        before = (torch.arange(49) < 24).float().view(7, 7)  # the pixels before the middle
        self.register_buffer("mask", before, persistent=False)
        self.classes = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(ResidualLstm(config.width, config.lstm) for _ in range(config.layers))
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, config.head_width, 1),
            nn.ReLU(),
            nn.Conv2d(config.head_width, outputs, 1),
        )

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        weight = self.first.weight * self.mask
        h = F.conv2d(with_ones(x_BCHW), weight, self.first.bias, padding=3)
        if self.classes is not None:
            h = h + self.classes(label_B)[:, :, None, None]
        for block in self.blocks:
            h = block(h)
        output: Tensor = self.head(h)
        return output.float()


COMPONENT = PixelRnnConfig
