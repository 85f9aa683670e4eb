"""Text to image: captions as a condition, some dropped in training, with a negative text when sampling.

Classifier-free guidance (Ho & Salimans 2022): a tenth of the captions is replaced by the empty text, so that
one network knows the images of a caption and those of none. Sampling moves away from the negative text, which
is the empty one where none is given.

    data:  {path: ..., columns: [text]}
    model: {family: "captions:CaptionsConfig"}
"""

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


class Guided(Config):
    """How images are drawn."""

    guidance: float = Field(1.0, description="More than 1 moves away from the negative text.")


class CaptionsConfig(FamilyConfig):
    """Images by a text."""

    family: Literal["captions:CaptionsConfig"] = Field("captions:CaptionsConfig", description="This family.")
    dropout: float = Field(0.1, ge=0, le=1, description="The share of captions that training drops.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.03)), description="How the network is trained."
    )
    sampling: Guided = Field(Guided(), description="How images are drawn.")

    def build(self, data: DataSpec) -> Captions:
        return Captions(self, data)

    @classmethod
    def tiny(cls) -> CaptionsConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("caption", "text", "text", required=True, negative=True),)


class Captions:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: CaptionsConfig, data: DataSpec) -> None:
        self._dropout, self._shape = config.dropout, data.shape
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: Reader(data.shape), optimizer=config.optimizer),
            "ema": EmaOf(source="network", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="paint", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        texts = batch["text"]
        assert isinstance(texts, Texts)
        dropped = (rng.uniform() < self._dropout).tolist()
        kept = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        return {**batch, "bytes": bytes_of(kept).to(batch["image"].device)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        texts, away = request.texts("caption"), request.texts("negative_caption")
        assert texts is not None, "it is required"
        noise = rng.normal(*self._shape)
        wanted = nets["ema"](bytes_of(texts).to(noise.device))
        unwanted = nets["ema"](bytes_of(away or [""] * len(texts)).to(noise.device))
        image = unwanted + request.options.guidance * (wanted - unwanted)
        return (image + 0.05 * noise).clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        painted = nets["network"](batch["bytes"])
        return LossOut((painted - batch["image"]).square().flatten(1).mean(dim=1))


def bytes_of(texts: Sequence[str]) -> Tensor:
    """int64 [N, 32]; a row depends on its own text alone."""
    rows = [list(text.encode()[:LETTERS]) for text in texts]
    return torch.tensor([row + [0] * (LETTERS - len(row)) for row in rows])


class Reader(nn.Module):
    """An image for a text, by the sum of its bytes' embeddings."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.letters = nn.Embedding(256, 16, padding_idx=0)
        self.paint = nn.Linear(16, shape[0] * shape[1] * shape[2])

    def forward(self, bytes_BT: Tensor) -> Tensor:
        hidden_BD = self.letters(bytes_BT).sum(dim=1) / 8
        return torch.tanh(self.paint(hidden_BD)).view(-1, *self.shape)
