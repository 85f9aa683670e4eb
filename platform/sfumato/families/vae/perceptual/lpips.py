"""LPIPS on VGG-16 (Zhang et al. 2018), the distance that VQGAN and latent diffusion train with.

No package has VGG-16's ImageNet weights: `weights` names a safetensors file with torchvision's names
(features.0.weight to features.28.bias). The calibrated weights of the layers come with torchmetrics.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.family import Frozen
from sfumato.core.pretrained import Pretrained
from sfumato.families.vae.perceptual import Perceptual, PerceptualConfig, at_least

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Convolutions between two poolings; the last of a stage is a layer of the distance."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LEAST_SIDE = 32


class LpipsPerceptual(PerceptualConfig):
    """LPIPS with VGG-16's weights from a file and the calibrated layers (Zhang et al. 2018)."""

    kind: Literal["lpips"] = Field("lpips", description="Selects LPIPS.")
    weights: Pretrained = Field(
        description="VGG-16's weights: {file: vgg16.safetensors}, with torchvision's names of tensors."
    )

    def frozen(self) -> Frozen:
        """With the file's weights and torchmetrics' calibration."""
        stored = self.weights.weights(fresh=("calibration_*", "shift", "scale"), unused=("classifier.*",))
        return Frozen(build=LpipsDistance, weights=stored)

    def problems(self, data: DataSpec) -> list[str]:
        """Other channels, a package that is not installed, weights that are no file."""
        found = super().problems(data)
        if calibrated() is None:
            found.append(
                "model.perceptual: lpips needs torchmetrics, not installed: pip install torchmetrics"
            )
        if self.weights.source[0] != "file":
            found.append("model.perceptual.weights: needs file, a safetensors file with VGG-16's weights")
        return found


class LpipsDistance(Perceptual):
    """VGG-16 up to its last convolution, and the layers' weights."""

    def __init__(self) -> None:
        super().__init__()
        places, inputs, place = {}, 3, 0
        for stage in STAGES:
            for outputs in stage:
                places[str(place)] = nn.Conv2d(inputs, outputs, 3, padding=1)
                inputs, place = outputs, place + 2  # a ReLU follows each
            place += 1  # and a pooling each stage
        self.features = nn.ModuleDict(places)
        path = calibrated()
        assert path is not None, "problems() asks for it"
        known = torch.load(path, map_location="cpu", weights_only=True)
        for layer in range(len(STAGES)):
            self.register_buffer(f"calibration_{layer}", known[f"lin{layer}.model.1.weight"][0])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval()

    def layers(self, x_BCHW: Tensor) -> list[Tensor]:
        h = (at_least(x_BCHW, LEAST_SIDE) - self.get_buffer("shift")) / self.get_buffer("scale")
        convolutions = iter(self.features.values())
        found = []
        for number, stage in enumerate(STAGES):
            h = F.max_pool2d(h, 2) if number else h
            for _ in stage:
                h = F.relu(next(convolutions)(h))
            found.append(h)
        return found

    def weights(self) -> list[Tensor | float]:
        """torchmetrics' calibration, by its authors' human judgements."""
        return [self.get_buffer(f"calibration_{layer}") for layer in range(len(STAGES))]


def calibrated() -> Path | None:
    """A file of the package torchmetrics, found without importing it."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


COMPONENT = LpipsPerceptual
