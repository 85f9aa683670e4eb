"""Growth by progress: a network begins at half the resolution, and a layer for the details fades in.

As in progressive growing (Karras et al. 2018, sec. 2): `alpha` rises from 0 to 1 between two numbers of
images; `prepare` blends the images that the network learns from, the network blends its own, and `sample`
blends as far as the model was trained. The layer that grows in has a learning rate of its own.

    model: {family: "growth:GrowthConfig", grow_from: 20000, grown_at: 60000}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig, OptimizerGroup
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate

OPTIMIZER = OptimizerConfig(
    lr=LearningRate(peak=0.01),
    weight_decay=0.1,
    groups=(
        OptimizerGroup(pattern="*.bias", weight_decay=0.0),
        OptimizerGroup(pattern="details.*", lr_factor=2.0),
    ),
)


class GrowthConfig(FamilyConfig):
    """Restores images from noise in one step, in coarse form first."""

    family: Literal["growth:GrowthConfig"] = Field("growth:GrowthConfig", description="This family.")
    grow_from: int = Field(128, ge=0, description="Images until which everything is coarse.")
    grown_at: int = Field(512, ge=1, description="Images from which on nothing is.")
    optimizer: OptimizerConfig = Field(OPTIMIZER, description="How the network is trained.")
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Growth:
        return Growth(self, data)

    @classmethod
    def tiny(cls) -> GrowthConfig:
        return cls()

    def problems(self, data: DataSpec) -> list[str]:
        odd = data.height % 2 or data.width % 2
        return [f"model.family: {data.height}x{data.width} has no half; use even sides"] if odd else []


class Growth:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: GrowthConfig, data: DataSpec) -> None:
        self._config, self._shape = config, data.shape
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: Growing(data.channels), optimizer=config.optimizer),
            "ema": EmaOf(source="network", decay=lambda progress: 0.9),
        }
        self.phases: Sequence[Phase] = (Phase(name="restore", trains="network", loss=self._loss),)

    def alpha(self, progress: Progress) -> float:
        """How far the details have grown in, from 0 to 1."""
        start, stop = self._config.grow_from, self._config.grown_at
        return min(1.0, max(0.0, (progress.images - start) / (stop - start)))

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        image, alpha = batch["image"], self.alpha(progress)
        target = alpha * image + (1 - alpha) * doubled(halved(image))
        return {**batch, "target": target, "noisy": target + rng.normal(*self._shape)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        image: Tensor = nets["ema"](rng.normal(*self._shape), self.alpha(progress))
        return image.clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        found = nets["network"](batch["noisy"], self.alpha(progress))
        return LossOut((found - batch["target"]).square().flatten(1).mean(dim=1))


class Growing(nn.Module):
    """A coarse image, and details that `alpha` fades in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1)
        self.details = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, noisy: Tensor, alpha: float) -> Tensor:
        coarse = doubled(self.coarse(halved(noisy)))
        return coarse + alpha * self.details(torch.cat([coarse, noisy], dim=1))


def halved(image_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(image_BCHW, 2)


def doubled(image_BCHW: Tensor) -> Tensor:
    return F.interpolate(image_BCHW, scale_factor=2.0, mode="nearest")
