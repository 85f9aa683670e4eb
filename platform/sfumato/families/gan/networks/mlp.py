"""Fully connected networks, as in the first GAN (Goodfellow et al. 2014, sec. 5).

A class enters both as further numbers that are 1 for the class and 0 otherwise (Mirza, Osindero 2014), or the
discriminator as `label_score` says. Leaky ReLUs stand for the paper's rectifiers and maxouts, and there is no
dropout.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.blocks import LEAK, ClassNorm, ScoreConfig, with_planes
from sfumato.families.gan.networks import FeatureDiscriminator, GeneratorNet, NetworkConfig

_Width = Annotated[int, Field(gt=0)]


class MlpConfig(NetworkConfig, ScoreConfig):
    """Fully connected layers (Goodfellow et al. 2014)."""

    judges: ClassVar[bool] = True
    kind: Literal["mlp"] = Field("mlp", description="Selects fully connected networks.")
    widths: tuple[_Width, ...] = Field(
        (256, 512, 1024), min_length=1, description="Units of the generator's layers, from the latent on."
    )
    discriminator_widths: tuple[_Width, ...] = Field(
        (512, 256), min_length=1, description="Units of the discriminator's layers, from the image on."
    )
    generator_norm: Literal["none", "batch"] = Field(
        "none", description="Normalisation of the generator's layers over the rows of a micro-batch."
    )

    @property
    def norms(self) -> tuple[str, str]:
        """As set."""
        return self.generator_norm, "none"

    @property
    def compares_rows(self) -> bool:
        """By minibatch discrimination."""
        return self.minibatch_kernels > 0

    @property
    def classifies(self) -> bool:
        """If the label's score is auxiliary."""
        return self.label_score == "auxiliary"

    @property
    def embeds_classes(self) -> bool:
        """The generator takes their numbers."""
        return False

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> MlpGenerator:
        """See the class."""
        return MlpGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> MlpDiscriminator:
        """See the class."""
        return MlpDiscriminator(self, data, classes=classes, bias=bias)

    @classmethod
    def tiny(cls) -> Self:
        """One layer each."""
        return cls(widths=(16,), discriminator_widths=(16,))


class MlpGenerator(GeneratorNet):
    """Layers from the latent and the class to all pixels at once."""

    def __init__(self, config: MlpConfig, data: DataSpec, *, latent: int, classes: int) -> None:
        super().__init__()
        self.shape, self.classes = data.shape, classes
        sizes = (latent + classes, *config.widths)
        normed = config.generator_norm == "batch"
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=not normed) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(ClassNorm("batch", width, 0) for width in config.widths if normed)
        self.image = nn.Linear(sizes[-1], data.channels * data.height * data.width)

    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        x_BC = z_BD
        if self.classes:
            x_BC = torch.cat([z_BD, F.one_hot(label_B, self.classes).to(z_BD.dtype)], 1)
        for at, layer in enumerate(self.layers):
            x_BC = layer(x_BC)
            if self.norms:
                x_BC = self.norms[at](x_BC[:, :, None, None], torch.zeros_like(label_B)).flatten(1)
            x_BC = F.leaky_relu(x_BC, LEAK)
        return torch.tanh(self.image(x_BC).float()).view(-1, *self.shape)


class MlpDiscriminator(FeatureDiscriminator):
    """Layers from all pixels at once to the features that are scored."""

    def __init__(self, config: MlpConfig, data: DataSpec, *, classes: int, bias: bool) -> None:
        super().__init__()
        self.mixes_rows = config.compares_rows
        self.planes = config.planes(classes)
        pixels = (data.channels + self.planes) * data.height * data.width
        widths = config.discriminator_widths
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((pixels, *widths)))
        self.output = config.score("none", widths[-1], classes, bias=bias)

    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """The last layer's units."""
        x_BC = with_planes(x_BCHW, label_B, self.planes).flatten(1)
        for layer in self.layers:
            x_BC = F.leaky_relu(layer(x_BC), LEAK)
        return x_BC


COMPONENT = MlpConfig
