"""Representation alignment: tokens in the middle of the network tell a frozen network's features (REPA).

Yu et al. 2025, eq. 6: with y the features of the clean image at T places and h the tokens of the noisy one
after `depth` blocks, a projector p learns with the network

    L = L_objective + weight * (1 - 1/T sum_t cos(p(h_t), y_t))

which makes training of large transformers several times shorter. Sampling knows nothing of it.

iREPA (Singh et al. 2025) holds that the features' spatial structure is what helps, and has two changes: p is
one convolution of 3x3 tokens, and of each image's features a part gamma of their mean is taken away,

    y' = (y - gamma mean_t(y)) / sqrt(var_t(y) + eps)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import Frozen, LossOut, Nets
from sfumato.core.pretrained import LibraryModel, Pretrained
from sfumato.families.diffusion.networks import NetworkConfig, Told
from sfumato.layers import library_networks

NAME = "encoder"
"""Of the frozen network among the family's networks."""
COLUMN = "aligned_features"
_SIDE = 224
_EPS = 1e-6
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], by which networks of images are fed."""


class AlignmentConfig(Config):
    """Which frozen network's features, at which depth, and how much they count."""

    encoder: Pretrained = Field(
        description="Folder of a network of images of transformers: DINOv2, ViT, ConvNeXt, ResNet, ...",
    )
    depth: int = Field(8, ge=1, description="After how many blocks tokens are compared (REPA: 8 of XL's 28).")
    weight: float = Field(0.5, gt=0, description="Of the alignment beside the objective's loss.")
    hidden: int = Field(2048, ge=1, description="Width of the projector's two hidden layers.")
    projector: Literal["mlp", "convolution"] = Field(
        "mlp",
        exclude_if=lambda value: value == "mlp",
        description="Three layers for each token (REPA), or one convolution of 3x3 tokens (iREPA).",
    )
    spatial_norm: float | None = Field(
        None,
        ge=0,
        le=1,
        exclude_if=lambda value: value is None,
        description="How much of the mean over an image's tokens is taken from its features, which are then "
        "divided by their deviation (gamma of iREPA); null leaves them as they are.",
    )

    def problems(self, network: NetworkConfig) -> list[str]:
        """Why the network's tokens cannot be compared, one line each."""
        blocks = network.blocks_of_tokens()
        if blocks is None:
            return [f"model.alignment: {network.kind} has no blocks of tokens; use network.kind=dit"]
        if self.depth > blocks:
            return [f"model.alignment.depth: {self.depth}, but the network has {blocks} blocks; use fewer"]
        library = self.encoder.library
        if library is not None and (library.library != "transformers" or not _width(library)):
            why = "is no network of images of transformers; name the folder of one, such as DINOv2's"
            return [f"model.alignment.encoder: {library.name} {why}"]
        return []


class Alignment:
    """The frozen network, and the loss by which a `network` with tokens on this `grid` meets it."""

    def __init__(self, config: AlignmentConfig, grid: tuple[int, int]) -> None:
        self._config, self._grid = config, grid
        opened = library_networks.opened(config.encoder)
        self.frozen = Frozen(build=opened.build, weights=opened.weights)

    @property
    def told(self) -> Told:
        """What the network has to tell."""
        assert self._config.encoder.library is not None, "opened"
        return Told(
            self._config.depth,
            self._config.hidden,
            _width(self._config.encoder.library),
            convolution=self._config.projector == "convolution",
        )

    def inputs(self, nets: Nets, pixels: Batch) -> Mapping[str, Tensor]:
        """The features of a batch's images, [B, T, E], in `COLUMN`."""
        found_BTE = features(nets[NAME], pixels["image"], self._grid)
        gamma = self._config.spatial_norm
        return {COLUMN: found_BTE if gamma is None else spatially_normal(found_BTE, gamma)}

    def loss(self, nets: Nets, batch: Batch, objective: Callable[[Nets], LossOut]) -> LossOut:
        """The objective's loss, and the distance of what the network told when it was first called."""
        network = _Listening(nets["network"])
        out = objective({**nets, "network": network})  # type: ignore[dict-item]
        assert network.heard is not None, "a network in training tells"
        alike_BT = F.cosine_similarity(network.heard.float(), batch[COLUMN].float(), dim=-1)
        alike_B = alike_BT.mean(dim=1)
        loss_B = out.loss_B + self._config.weight * (1 - alike_B)
        return replace(out, loss_B=loss_B, metrics={**out.metrics, "alignment": alike_B.detach()})


def spatially_normal(y_BTE: Tensor, gamma: float) -> Tensor:
    """Features without a part of their mean over the tokens, over their deviation; float32."""
    y_BTE = y_BTE.float()
    variance_B1E, mean_B1E = torch.var_mean(y_BTE, dim=1, keepdim=True, correction=0)
    return (y_BTE - gamma * mean_B1E) * (variance_B1E + _EPS).rsqrt()


class _Listening:
    """A network that is called as before; keeps what it told first."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.heard: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._network(*args, **kwargs)
        if self.heard is None and len(found) > 1:
            self.heard = found[1]
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@torch.no_grad()
def features(network: nn.Module, image_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the frozen network says of images in [-1, 1], [B, T, E] in row-major order on the grid.

    A transformer of patches gets images of as many patches as the grid has; other networks get images of 224
    pixels, and their last map is averaged or spread over the grid.
    """
    config: Any = network.config
    patch = getattr(config, "patch_size", None)
    size = (_SIDE, _SIDE)
    if isinstance(patch, int) and hasattr(config, "hidden_size"):
        size = (grid[0] * patch, grid[1] * patch)
    three = image_BCHW.expand(-1, 3, -1, -1) if image_BCHW.shape[1] == 1 else image_BCHW
    resized = F.interpolate(three.float(), size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (resized.new_tensor(value).view(1, 3, 1, 1) for value in (_MEAN, _STD))
    more = {}
    if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
        more["interpolate_pos_encoding"] = True
    found: Tensor = network((resized * 0.5 + 0.5 - mean) / std, **more).last_hidden_state
    if found.dim() == 3:
        return found[:, -grid[0] * grid[1] :]  # after the class token and registers
    return F.interpolate(found, grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def _width(library: LibraryModel) -> int:
    """Channels of the features; 0 for a network that is none of images."""
    config = library_networks.config_of(library)
    if not hasattr(config, "num_channels"):
        return 0
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else getattr(config, "hidden_size", 0))


def grid_of(network: NetworkConfig, data: DataSpec) -> tuple[int, int]:
    """Rows and columns of the network's tokens."""
    patch = int(getattr(network, "patch", 1))
    return data.height // patch, data.width // patch
