"""Families outside the package, each around one thing that the loop offers: state (with groups of
parameters), weights of rows, phases that start and stop, growth by progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig, OptimizerGroup
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate

DECAY = 0.75
GROWN_IMAGES = 256
OPTIMIZER = OptimizerConfig(name="adamw", lr=LearningRate(peak=0.01), eps=1e-5, weight_decay=0.1)
GROUPS = (
    OptimizerGroup(pattern="*.bias", lr_factor=0.25, weight_decay=0.0),
    OptimizerGroup(pattern="grown.*", lr_factor=2.0),
)


class Network(nn.Module):
    """A linear map, and a second one that `alpha` fades in."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Linear(size, size)
        self.grown = nn.Linear(size, size)

    def forward(self, x_BD: Tensor, alpha: float = 1.0) -> Tensor:
        h_BD = self.first(x_BD)
        return h_BD + alpha * self.grown(torch.tanh(h_BD))


class NoOptions(Config):
    """Nothing to choose."""


class TinyConfig(FamilyConfig):
    """One small family of each kind."""

    family: Literal["tiny_families:TinyConfig"] = Field("tiny_families:TinyConfig", description="This one.")
    kind: Literal["state", "weights", "phases", "growth"] = Field("state", description="Which.")
    optimizer: OptimizerConfig = Field(OPTIMIZER, description="How networks are trained.")
    sampling: NoOptions = Field(NoOptions(), description="Nothing.")

    def build(self, data: DataSpec) -> Tiny:
        return Tiny(self, data)

    @classmethod
    def tiny(cls) -> TinyConfig:
        return cls()

    @classmethod
    def variants(cls) -> Mapping[str, TinyConfig]:
        grouped = OPTIMIZER.model_copy(update={"groups": GROUPS})
        return {
            "state": cls(optimizer=grouped),
            "weights": cls(kind="weights"),
            "phases": cls(kind="phases"),
            "growth": cls(kind="growth"),
        }


class Tiny:
    """Implements `core.family.Family` and `core.state.HasState`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: TinyConfig, data: DataSpec) -> None:
        self._kind, self._data = config.kind, data
        size = data.channels * data.height * data.width
        net = Trainable(build=lambda: Network(size), optimizer=config.optimizer)
        self.nets: Mapping[str, NetSpec] = {
            "a": net,
            **({"b": net} if config.kind == "phases" else {}),
            "ema": EmaOf(source="a", decay=lambda progress: 0.9),
        }
        self.phases: Sequence[Phase] = (Phase(name="a", trains="a", loss=self._loss),)
        if config.kind == "phases":
            self.phases = (
                Phase(name="a", trains="a", loss=self._loss, stop_images=200),
                Phase(name="b", trains="b", loss=self._second, start_images=100, repeats=2),
            )
        self.state: Mapping[str, Tensor] = {}
        if config.kind == "state":
            self.state = {
                "mean": torch.zeros(size, dtype=torch.float64),
                "steps": torch.zeros((), dtype=torch.int64),
            }

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return {**batch, "noise": rng.normal(1)}

    def advance(self, state: Mapping[str, Tensor], sums: Mapping[str, Tensor], progress: Progress):
        if not state:
            return {}
        mean = sums["image"] / sums["rows"].clamp_min(1)
        return {
            "mean": DECAY * state["mean"] + (1 - DECAY) * mean,
            "steps": state["steps"] + (sums["rows"] > 0),
        }

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        x_ND = rng.normal(self._data.channels * self._data.height * self._data.width)
        image_ND = nets["ema"](x_ND, self._alpha(progress))
        if "mean" in progress.state:
            image_ND = image_ND + progress.state["mean"].float()
        return image_ND.clamp(-1, 1).view(-1, *self._data.shape)

    def _alpha(self, progress: Progress) -> float:
        """How far the second layer has grown in."""
        return min(1.0, progress.images / GROWN_IMAGES) if self._kind == "growth" else 1.0

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        x_BD = batch["image"].flatten(1)
        if self._kind == "state":
            centred_BD = x_BD - progress.state["mean"].float()
            loss_B = (nets["a"](centred_BD) - centred_BD).square().mean(1)
            sums = {"image": x_BD.double().sum(0), "rows": torch.ones(rng.rows).sum()}
            return LossOut(loss_B, {"mean": progress.state["mean"].mean()}, sums)
        loss_B = (nets["a"](x_BD + 0.1 * batch["noise"], self._alpha(progress)) - x_BD).square().mean(1)
        weights_B = 0.1 + batch["label"].float() if self._kind == "weights" else None
        return LossOut(loss_B, weights_B=weights_B)

    def _second(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        x_BD = batch["image"].flatten(1) + rng.normal(1)
        return LossOut((nets["b"](x_BD) - nets["a"](x_BD)).square().mean(1))
