"""Image to image: a second image of every sample is the condition, and one draw flips both alike.

The control image is the column `control`, of its own number of channels; here it holds the edges of the
image. A recipe's `data.transforms` move it together with the image.

    data:  {path: ..., columns: [control], transforms: [{kind: flip}]}
    model: {family: "edges:EdgesConfig"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate


class EdgesConfig(FamilyConfig):
    """Paints what a control image shows."""

    family: Literal["edges:EdgesConfig"] = Field("edges:EdgesConfig", description="This family.")
    width: int = Field(8, ge=1, description="Channels inside the network.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.01)), description="How the network is trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Edges:
        return Edges(self, data)

    @classmethod
    def tiny(cls) -> EdgesConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        column = data.columns.get("control")
        shape = data.shape if column is None else column.shape
        return (Condition("control", "control", "image", shape, required=True),)


class Edges:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: EdgesConfig, data: DataSpec) -> None:
        self._shape = data.shape
        channels = config.conditions(data)[0].shape[0]
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: painter(channels + data.channels, config.width, data.channels),
                optimizer=config.optimizer,
            ),
            "ema": EmaOf(source="network", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="paint", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return {**batch, "input": torch.cat([batch["control"], rng.normal(*self._shape)], dim=1)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        noise = rng.normal(*self._shape)
        control = request.tensor("control")
        assert control is not None, "it is required"
        image: Tensor = nets["ema"](torch.cat([control.to(noise.device), noise], dim=1))
        return image.clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        painted = nets["network"](batch["input"])
        return LossOut((painted - batch["image"]).abs().flatten(1).mean(dim=1))


def painter(channels: int, width: int, out: int) -> nn.Module:
    """From the control image and noise to an image of the same size."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, out, 3, padding=1)
    )
