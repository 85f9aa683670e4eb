"""A network that hides 32 bits in images and one that reads them, trained together (HiDDeN, Zhu et al. 2018).

    L = mean BCE(R(A(x_m)), m) + w |x_m - x|^2,    x_m = H(x, m)

with random messages m and an attack A drawn for each image. There is no discriminator: the residual is
bounded. The reading network alone is what `stable_signature` needs (Fernandez et al. 2023, sec. 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.messages import LENGTH
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import CapabilityError
from sfumato.families.signature.attacks import ATTACKS, drawn
from sfumato.families.signature.networks import Pair
from sfumato.families.signature.objectives import ObjectiveConfig, Training


class HiddenConfig(ObjectiveConfig):
    """The two networks and what they must survive."""

    kind: Literal["hidden"] = Field("hidden", description="Selects the training of an extractor.")
    width: int = Field(32, ge=4, multiple_of=4, description="Channels of the hiding network.")
    depth: int = Field(3, ge=1, description="Convolutions of each network, roughly.")
    strength: float = Field(
        0.1, gt=0, le=1, description="Largest change of a pixel, on the scale of [-1, 1]."
    )
    image_weight: float = Field(10.0, ge=0, description="Weight of the squared change of the image.")
    attacks: tuple[str, ...] = Field(
        tuple(ATTACKS), min_length=1, description=f"One of them for each image: {', '.join(ATTACKS)}."
    )

    @field_validator("attacks")
    @classmethod
    def _known(cls, attacks: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in attacks if name not in ATTACKS]:
            raise ValueError(f"got {unknown[0]!r}; there are {', '.join(ATTACKS)}")
        return attacks

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, one convolution."""
        return cls(width=4, depth=1)

    def build(self, training: Training, data: DataSpec) -> HiddenFamily:
        return HiddenFamily(self, training, data)


class HiddenFamily:
    """Implements `core.family.Family`, `Reconstructs` and `core.messages.ReadsMessages`."""

    samplers: Sequence[str] = ("ema",)
    message: str | None = None

    def __init__(self, config: HiddenConfig, training: Training, data: DataSpec) -> None:
        self._config, self._data = config, data
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=self._build, optimizer=training.optimizer),
            "ema": EmaOf(source="network", decay=training.ema.decay),
        }
        self.phases: Sequence[Phase] = (Phase(name="hide", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Raises CapabilityError: it marks images, and draws none."""
        raise CapabilityError(
            "an extractor of messages cannot draw images; name it in model.objective.extractor of another run"
        )

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The images with a message, always the same, so that what that costs can be measured."""
        x_BCHW = batch["image"]
        bits = torch.arange(LENGTH, device=x_BCHW.device) % 2
        found: Tensor = _pair(nets["ema"]).hiding(x_BCHW, bits.to(x_BCHW).expand(len(x_BCHW), -1))
        return found

    def read_message(self, nets: Nets, image_NCHW: Tensor) -> Tensor:
        """By the averaged network."""
        return _pair(nets["ema"]).read(image_NCHW)

    def _build(self) -> Pair:
        config = self._config
        return Pair(self._data.channels, config.width, config.depth, config.strength)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Bits, and what they cost the image; `bits` is the share that was read right after the attack."""
        x_BCHW = batch["image"]
        bits_BK = rng.integers(2, LENGTH).to(x_BCHW)
        marked, logits = nets["network"](x_BCHW, bits_BK, drawn(self._config.attacks, rng))
        wrong_B = F.binary_cross_entropy_with_logits(logits.float(), bits_BK, reduction="none").mean(1)
        error_B = (marked - x_BCHW).square().flatten(1).mean(1)
        right_B = ((logits > 0) == (bits_BK > 0)).float().mean(1)
        metrics = {"bits": right_B.detach(), "error": error_B.detach()}
        return LossOut(wrong_B + self._config.image_weight * error_B, metrics)


def _pair(network: object) -> Pair:
    assert isinstance(network, Pair), "built as one"
    return network


COMPONENT = HiddenConfig
