"""Distillation: a small network learns what a frozen teacher from a trained run predicts.

The teacher is the network of any unconditional diffusion run that predicts the noise, found by the run's name
and held to its digest; it is frozen, in bfloat16, and a strategy that shards parameters may shard it. The
student learns its predictions at all noise levels, of which the high ones count more, and draws an image in
one step from the highest. A model folder holds the student alone.

    model: {family: "distilled:DistilledConfig", teacher: {run: my-diffusion}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import (
    EmaOf,
    FamilyConfig,
    Frozen,
    LossOut,
    Nets,
    NetSpec,
    Phase,
    SampleRequest,
    Trainable,
)
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate
from sfumato.families import config_class
from sfumato.families.diffusion.networks import predict


class DistilledConfig(FamilyConfig):
    """A student of a diffusion model."""

    family: Literal["distilled:DistilledConfig"] = Field(
        "distilled:DistilledConfig", description="This family."
    )
    teacher: Pretrained = Field(description="A trained diffusion run.")
    levels: int = Field(20, ge=2, description="Noise levels of the teacher.")
    width: int = Field(8, ge=1, description="Channels inside the student.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.01)), description="How the student is trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Distilled:
        return Distilled(self, data)

    @classmethod
    def tiny(cls) -> DistilledConfig:
        return cls(teacher=Pretrained(run="teacher"))


class Distilled:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: DistilledConfig, data: DataSpec) -> None:
        self._levels, self._shape = config.levels, data.shape
        teacher = config.teacher.open(config_class)
        self.nets: Mapping[str, NetSpec] = {
            "student": Trainable(
                build=lambda: Student(data.channels, config.width), optimizer=config.optimizer
            ),
            "teacher": Frozen(build=teacher.build, weights=teacher.weights, dtype=torch.bfloat16, shard=True),
            "ema": EmaOf(source="student", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="imitate", trains="student", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Noisy images, each at a level of its own, and the noise that the teacher sees in them."""
        level_B = rng.integers(self._levels)
        share_B = self._share(level_B)
        part = share_B[:, None, None, None]
        noisy = (1 - part).sqrt() * batch["image"] + part.sqrt() * rng.normal(*self._shape)
        told = predict(nets["teacher"], noisy.to(torch.bfloat16), level_B, None).float()
        return {"noisy": noisy, "share": share_B, "told": told}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        noise = rng.normal(*self._shape)
        share_B = self._share(torch.full((request.num,), self._levels - 1, device=noise.device))
        part = share_B[:, None, None, None]
        image: Tensor = (noise - part.sqrt() * nets["ema"](noise, share_B)) / (1 - part).sqrt()
        return image.clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        found = nets["student"](batch["noisy"], batch["share"])
        loss_B = (found - batch["told"]).square().flatten(1).mean(dim=1)
        return LossOut(loss_B, weights_B=batch["share"])

    def _share(self, level_B: Tensor) -> Tensor:
        """The noise's share of an image's variance, [B]."""
        return (level_B + 0.5) / self._levels


class Student(nn.Module):
    """The noise in an image, of which `share_B` says how much it is."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, noisy_BCHW: Tensor, share_B: Tensor) -> Tensor:
        share = share_B[:, None, None, None].expand(-1, 1, *noisy_BCHW.shape[2:])
        found: Tensor = self.net(torch.cat([noisy_BCHW, share], dim=1))
        return found
