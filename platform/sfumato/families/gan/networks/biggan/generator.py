"""BigGAN's generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.attention import SelfAttention
from sfumato.families.gan.layers.blocks import init_orthogonal
from sfumato.families.gan.networks import Generated, GeneratorNet
from sfumato.layers.batch_norm import BatchNorm
from sfumato.layers.spectral import Spectral, SpectralConv2d, SpectralLinear


class BigGanGenerator(GeneratorNet):
    """A linear map to the first feature map, then a residual block for every doubling."""

    def __init__(
        self,
        channels: Sequence[int],
        data: DataSpec,
        *,
        latent: int,
        classes: int,
        class_channels: int,
        attention: int | None,
    ) -> None:
        super().__init__()
        doublings = len(channels)
        self.base = (channels[0], data.height >> doublings, data.width >> doublings)
        first, *others = _pieces(latent, doublings + 1)
        self.cut = [first, *others]
        self.embedding = nn.Embedding(classes, class_channels) if classes else None
        known = class_channels if classes else 0
        self.project = SpectralLinear(first, channels[0] * self.base[1] * self.base[2])
        sizes = list(pairwise((channels[0], *channels)))
        self.blocks = nn.ModuleList(
            _UpBlock(a, b, known + piece, attends=data.height >> (doublings - 1 - at) == attention)
            for at, ((a, b), piece) in enumerate(zip(sizes, others, strict=True))
        )
        self.norm = BatchNorm(channels[-1])
        self.gain = nn.Parameter(torch.ones(channels[-1]))
        self.bias = nn.Parameter(torch.zeros(channels[-1]))
        self.image = SpectralConv2d(channels[-1], data.channels, 3, 1, 1)
        init_orthogonal(self)
        if self.embedding is not None:
            nn.init.orthogonal_(self.embedding.weight)

    def forward(self, z_BD: Tensor, label_B: Tensor, *, details: bool = False, **inputs: Any) -> Any:
        """With `details`, also the orthogonality penalty of all layers but the class's embedding."""
        first_BD, *others = torch.split(z_BD, self.cut, 1)
        penalty = _unorthogonal([self.project, self.image]) if details else None
        x_BCHW = self.project(first_BD).unflatten(1, self.base)
        known = [] if self.embedding is None else [self.embedding(label_B)]
        for block, piece_BD in zip(self.blocks, others, strict=True):
            x_BCHW, more = block(x_BCHW, torch.cat([*known, piece_BD], 1), penalised=details)
            if penalty is not None:
                penalty = penalty + more
        x_BCHW = self.norm(x_BCHW) * self.gain[:, None, None] + self.bias[:, None, None]
        image_BCHW = torch.tanh(self.image(F.relu(x_BCHW)).float())
        return Generated(image_BCHW, None, penalty) if details else image_BCHW


class _UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, known: int, *, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _SteeredNorm(inputs, known), _SteeredNorm(outputs, known)
        self.conv1 = SpectralConv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = SpectralConv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = SpectralConv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs) if attends else None

    def forward(
        self, x_BCHW: Tensor, known_BD: Tensor, *, penalised: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        h_BCHW = F.interpolate(F.relu(self.norm1(x_BCHW, known_BD)), scale_factor=2)
        h_BCHW = self.conv2(F.relu(self.norm2(self.conv1(h_BCHW), known_BD)))
        # A 1x1 convolution and nearest neighbours commute, and it is cheaper before them.
        x_BCHW = h_BCHW + F.interpolate(self.shortcut(x_BCHW), scale_factor=2)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW)
        return x_BCHW, _unorthogonal(_layers(self)) if penalised else None


class _SteeredNorm(nn.Module):
    """Batch normalisation with gain 1 + A h and bias B h, where h describes latent and class."""

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)
        self.gain = SpectralLinear(known, channels, bias=False)
        self.bias = SpectralLinear(known, channels, bias=False)

    def forward(self, x_BCHW: Tensor, known_BD: Tensor) -> Tensor:
        gain_BC11 = 1 + self.gain(known_BD)[:, :, None, None]
        out_BCHW: Tensor = self.norm(x_BCHW) * gain_BC11 + self.bias(known_BD)[:, :, None, None]
        return out_BCHW


def _pieces(latent: int, count: int) -> list[int]:
    """Nearly equal parts of the latent; the first is the largest."""
    return [latent // count + (at < latent % count) for at in range(count)]


def _layers(block: nn.Module) -> Iterator[Spectral]:
    return (module for module in block.modules() if isinstance(module, Spectral))


def _unorthogonal(layers: Any) -> Tensor:
    """The sum over layers of |W W' * (1 - I)|^2, W as [out, rest]: 0 where all rows are at right angles."""
    total: Any = 0.0
    for layer in layers:
        matrix = layer.weight.float().flatten(1)
        with torch.autocast(matrix.device.type, enabled=False):
            gram = matrix @ matrix.T
        total = total + (gram - gram.diag().diag()).square().sum()
    penalty: Tensor = total
    return penalty
