"""State: a running mean of all images, the same on every rank, for any number of ranks and after a kill.

The network learns on images from which the mean is taken, and sampling adds it. The mean is neither a weight
nor a function of the images seen: losses return sums over their rows, the loop adds them up over
micro-batches and ranks, and `advance` makes the next state of them once a step.

    model: {family: "running_mean:RunningMeanConfig"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate
from sfumato.core.state import State


class RunningMeanConfig(FamilyConfig):
    """Restores centred images from noise in one step."""

    family: Literal["running_mean:RunningMeanConfig"] = Field(
        "running_mean:RunningMeanConfig", description="This family."
    )
    decay: float = Field(0.75, ge=0, lt=1, description="Weight of the old mean after a step.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.01), weight_decay=0.1), description="How it is trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> RunningMean:
        return RunningMean(self, data)

    @classmethod
    def tiny(cls) -> RunningMeanConfig:
        return cls()


class RunningMean:
    """Implements `core.family.Family` and `core.state.HasState`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: RunningMeanConfig, data: DataSpec) -> None:
        self._decay, self._shape = config.decay, data.shape
        size = data.channels * data.height * data.width
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: nn.Linear(size, size), optimizer=config.optimizer),
            "ema": EmaOf(source="network", decay=lambda progress: 0.9),
        }
        self.phases: Sequence[Phase] = (Phase(name="restore", trains="network", loss=self._loss),)
        self.state: State = {
            "mean": torch.zeros(size, dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """A step whose update was left out has no rows, and moves nothing."""
        rows = sums["rows"]
        mean = self._decay * state["mean"] + (1 - self._decay) * sums["image"] / rows.clamp_min(1)
        return {
            "mean": torch.where(rows > 0, mean, state["mean"]),
            "steps": state["steps"] + (rows > 0),
        }

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        centred = batch["image"].flatten(1) - progress.state["mean"].float()
        return {**batch, "centred": centred, "noise": rng.normal(centred.shape[1])}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        noise = rng.normal(progress.state["mean"].numel())
        image_ND = nets["ema"](noise) + progress.state["mean"].float()
        return image_ND.clamp(-1, 1).view(-1, *self._shape)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        found = nets["network"](batch["centred"] + batch["noise"])
        loss_B = (found - batch["centred"]).square().mean(dim=1)
        sums = {
            "image": batch["image"].flatten(1).double().sum(dim=0),
            "rows": torch.tensor(float(rng.rows), device=loss_B.device),
        }
        return LossOut(loss_B, {"mean": progress.state["mean"].mean()}, sums)
