"""Building blocks of both kinds of networks: normalisation by class, bounded layers, initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.config import Config
from sfumato.families.gan.layers.minibatch import MinibatchDiscrimination
from sfumato.layers.batch_norm import BatchNorm
from sfumato.layers.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear

LEAK = 0.2
GROUPS = 8


class ClassNorm(nn.Module):
    """Normalisation whose gain and bias belong to the class (Dumoulin, Shlens, Kudlur 2017).

    `classes` 0 has one gain and bias for all.
    """

    def __init__(self, kind: str, channels: int, classes: int) -> None:
        super().__init__()
        self.norm: nn.Module = (
            BatchNorm(channels)
            if kind == "batch"
            else nn.GroupNorm(math.gcd(channels, GROUPS), channels, affine=False)
        )
        rows = max(1, classes)
        self.gain = nn.Embedding(rows, channels)
        self.bias = nn.Embedding(rows, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """`label_B` is zero everywhere for a network without classes."""
        gain_BC11 = self.gain(label_B)[:, :, None, None]
        bias_BC11 = self.bias(label_B)[:, :, None, None]
        normal_BCHW = self.norm(x_BCHW)
        out_BCHW: Tensor = normal_BCHW * gain_BC11 + bias_BC11
        return out_BCHW


def conv(norm: str, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution of the discriminator; it has no bias where batch normalisation follows."""
    if norm == "spectral":
        return SpectralConv2d(inputs, outputs, kernel, stride, padding)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm != "batch")


LabelScore = Literal["projection", "auxiliary", "concatenation"]


class ScoreConfig(Config):
    """How a discriminator scores its features and what it is told about the class."""

    label_score: LabelScore = Field(
        "projection",
        exclude_if=lambda value: value == "projection",
        description="What the discriminator does with classes: projection (Miyato & Koyama 2018), auxiliary "
        "classifies images too (Odena, Olah, Shlens 2017), concatenation adds a plane per class to the image "
        "(Mirza & Osindero 2014).",
    )
    minibatch_kernels: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: not value,
        description="Features by which minibatch discrimination compares the images of a micro-batch "
        "(Salimans et al. 2016); 0 leaves it out.",
    )

    def score(self, norm: str, features: int, classes: int, *, bias: bool) -> Score:
        """The last layer of a discriminator with so many features."""
        return Score(norm, features, classes, bias=bias, how=self.label_score, kernels=self.minibatch_kernels)

    def planes(self, classes: int) -> int:
        """Planes that `with_planes` adds to an image."""
        return classes if self.label_score == "concatenation" else 0


class Score(nn.Module):
    """A number an image: psi(phi) + <e_y, phi> (projection discriminator, Miyato & Koyama 2018, eq. 3).

    Without classes, or with another `how` than projection, the second term is left out. `bias` is left out
    where the loss cannot see it, since a gradient that is zero but for rounding would be blown up by Adam.
    """

    def __init__(
        self,
        norm: str,
        features: int,
        classes: int,
        *,
        bias: bool,
        how: LabelScore = "projection",
        kernels: int = 0,
    ) -> None:
        super().__init__()
        spectral = norm == "spectral"
        linear = SpectralLinear if spectral else nn.Linear
        embedding = SpectralEmbedding if spectral else nn.Embedding
        self.minibatch = MinibatchDiscrimination(features, kernels) if kernels else None
        features += kernels
        self.linear = linear(features, 1, bias=bias)
        self.embedding = embedding(classes, features) if classes and how == "projection" else None
        self.classifier = linear(features, classes) if classes and how == "auxiliary" else None

    def forward(self, phi_BF: Tensor, label_B: Tensor) -> Tensor:
        score_B, _ = self.judge(phi_BF, label_B)
        return score_B

    def judge(self, phi_BF: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scores [B], and the log-probabilities [B] of the given classes by an auxiliary classifier."""
        if self.minibatch is not None:
            phi_BF = self.minibatch(phi_BF)
        score_B: Tensor = self.linear(phi_BF).squeeze(1)
        if self.embedding is not None:
            score_B = score_B + (self.embedding(label_B) * phi_BF).sum(1)
        if self.classifier is None:
            return score_B.float(), None
        log_BK = self.classifier(phi_BF).float().log_softmax(1)
        # Every parameter takes part in a loss that sees the score alone.
        return score_B.float() + 0 * log_BK.sum(1), log_BK.gather(1, label_B[:, None]).squeeze(1)


def with_planes(x_BCHW: Tensor, label_B: Tensor, planes: int) -> Tensor:
    """The image with one further plane for each of the classes: 1 for its own, 0 for the others."""
    if not planes:
        return x_BCHW
    one_hot_BK11 = F.one_hot(label_B, planes).to(x_BCHW.dtype)[:, :, None, None]
    return torch.cat([x_BCHW, one_hot_BK11.expand(-1, -1, *x_BCHW.shape[2:])], 1)


def init_normal(network: nn.Module, std: float) -> None:
    """Weights of convolutions, linear maps and scores' classes from N(0, std^2), biases zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for embedding in _plain_embeddings(network):
        nn.init.normal_(embedding.weight, 0.0, std)


def init_orthogonal(network: nn.Module) -> None:
    """Orthogonal weights, scores' classes included (as BigGAN; Brock et al. 2019, app. C), biases zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for embedding in _plain_embeddings(network):
        nn.init.orthogonal_(embedding.weight)


def _plain_embeddings(network: nn.Module) -> Iterator[nn.Embedding]:
    """Scores' embeddings whose scale counts: torch's N(0, 1) would drown the linear map. A spectral one's
    is divided out."""
    for module in network.modules():
        if isinstance(module, Score) and type(module.embedding) is nn.Embedding:
            yield module.embedding
