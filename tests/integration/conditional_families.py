"""Two tiny families outside the package: images by a text with a negative one, and images by an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec, Texts
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate

LETTERS = 32
OPTIMIZER = OptimizerConfig(name="adamw", lr=LearningRate(peak=0.03, warmup_images=0))


class Guided(Config):
    """How images are drawn."""

    guidance: float = Field(1.0, description="More than 1 moves away from the negative text.")


def bytes_of(texts: Sequence[str]) -> Tensor:
    """int64 [N, 32], whatever the other texts are."""
    rows = [list(text.encode()[:LETTERS]) for text in texts]
    return torch.tensor([row + [0] * (LETTERS - len(row)) for row in rows])


class Reader(nn.Module):
    """An image for a text: the mean of its bytes' embeddings, and some noise."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.letters = nn.Embedding(256, 16, padding_idx=0)
        self.paint = nn.Linear(16, shape[0] * shape[1] * shape[2])

    def forward(self, bytes_BT: Tensor) -> Tensor:
        hidden_BD = self.letters(bytes_BT).sum(dim=1) / 8
        return torch.tanh(self.paint(hidden_BD)).view(-1, *self.shape)


class WordsConfig(FamilyConfig):
    """Trained on captions, a tenth of which is dropped."""

    family: Literal["conditional_families:WordsConfig"] = "conditional_families:WordsConfig"
    sampling: Guided = Field(Guided(), description="How images are drawn.")

    def build(self, data: DataSpec) -> Words:
        return Words(data)

    @classmethod
    def tiny(cls) -> WordsConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("caption", "text", "text", required=True, negative=True),)


class Words:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, data: DataSpec) -> None:
        self._shape = data.shape
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: Reader(data.shape), optimizer=OPTIMIZER),
            "ema": EmaOf(source="network", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="paint", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        texts = batch["text"]
        assert isinstance(texts, Texts)
        dropped = (rng.uniform() < 0.1).tolist()
        kept = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        return {**batch, "bytes": bytes_of(kept).to(batch["image"].device)}

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return LossOut((nets["network"](batch["bytes"]) - batch["image"]).square().flatten(1).mean(dim=1))

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        texts, away = request.texts("caption"), request.texts("negative_caption")
        assert texts is not None
        wanted = nets["ema"](bytes_of(texts))
        unwanted = nets["ema"](bytes_of(away or [""] * len(texts)))
        image = unwanted + request.options.guidance * (wanted - unwanted)
        return (image + 0.05 * rng.normal(*self._shape)).clamp(-1, 1)


class PaintConfig(FamilyConfig):
    """Paints what an image of its own size and channels shows."""

    family: Literal["conditional_families:PaintConfig"] = "conditional_families:PaintConfig"
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Paint:
        return Paint(data)

    @classmethod
    def tiny(cls) -> PaintConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("control", "control", "image", data.columns["control"].shape, required=True),)


class Paint:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, data: DataSpec) -> None:
        self._shape = data.shape
        channels = data.columns["control"].shape[0]
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: nn.Conv2d(channels, data.channels, 3, padding=1), optimizer=OPTIMIZER
            ),
            "ema": EmaOf(source="network", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="paint", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return batch

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        painted_BCHW = nets["network"](batch["control"])
        return LossOut((painted_BCHW - batch["image"]).square().flatten(1).mean(dim=1))

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        control_NCHW = request.tensor("control")
        assert control_NCHW is not None
        image: Tensor = nets["ema"](control_NCHW) + 0.01 * rng.normal(*self._shape)
        return image.clamp(-1, 1)
