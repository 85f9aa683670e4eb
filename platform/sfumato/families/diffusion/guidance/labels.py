"""Labels and texts: dropped in training so that the network learns both models, and guided in sampling.

Classifier-free guidance (Ho & Salimans 2022): one network is trained with its labels replaced by a null
class now and then (algorithm 1), and sampled from a mixture of its two outputs (eq. 6). Autoguidance (Karras
et al. 2024) mixes its output with that of a smaller or less trained network instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.rng import Rng
from sfumato.families.diffusion.adapting.steering import LABEL
from sfumato.text.condition import TextCondition

if TYPE_CHECKING:
    from sfumato.families.diffusion.pipeline import Guidance  # loads diffusers

Given: TypeAlias = Tensor | Mapping[str, Tensor]
"""What steers a batch: classes, int64 [B], or the inputs of texts, named tensors with B rows."""


class Conditioning(Protocol):
    """What the network sees of a batch besides its images."""

    @property
    def null_class(self) -> int | None:
        """The index that stands for no class; None for a model without classes."""
        ...

    def draw(self, batch: Batch, rng: Rng) -> Given | None:
        """The labels or texts of a prepared batch, some of them dropped."""
        ...


@dataclass(frozen=True, slots=True)
class LabelDropout:
    """The labels that the network sees in training.

    `null_class` is the index that stands for no class, or None for a model without labels.
    """

    null_class: int | None
    probability: float

    def draw(self, batch: Batch, rng: Rng) -> Tensor | None:
        """The batch's labels [B], each replaced by the null class with the given probability."""
        if self.null_class is None:
            return None
        label_B = batch["label"]
        dropped_B = rng.uniform() < self.probability
        return torch.where(dropped_B, torch.full_like(label_B, self.null_class), label_B)


@dataclass(frozen=True, slots=True)
class GivenTexts:
    """The texts that the network sees in training; they were dropped when the batch was prepared."""

    text: TextCondition
    more: Sequence[str] = ()
    """What the network sees of a prepared batch besides."""
    null_class: int | None = None

    def draw(self, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """The inputs of the batch's texts."""
        return {**self.text.of(batch), **_named(batch, self.more)}


@dataclass(frozen=True, slots=True)
class GivenInputs:
    """The labels that a network without texts sees in training, and what else it is shown."""

    labels: LabelDropout
    more: Sequence[str]

    @property
    def null_class(self) -> int | None:
        """That of the labels."""
        return self.labels.null_class

    def draw(self, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Labels, if there are any, and inputs."""
        label_B = self.labels.draw(batch, rng)
        return {**_named(batch, self.more), **({} if label_B is None else {LABEL: label_B})}


def _named(batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names if name in batch}


@dataclass(frozen=True, slots=True)
class Guided:
    """A network with the labels or texts, and the guidance, of one call of `sample`.

    `null` is what guidance leads away from: the index of no class, or the inputs of other texts. `weight`,
    `interval` and `rescale` are those of `pipeline.Guidance`; `worse` is the output at (x, t) of
    autoguidance's network, None for classifier-free guidance.
    """

    network: nn.Module
    given: Given | None
    weight: float
    null: int | Mapping[str, Tensor]
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    image: float = 1.0
    nothing: Mapping[str, Tensor] | None = None
    """Inputs of neither text nor image; `image` leads from them to `null`."""
    worse: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def guidance(self) -> Guidance:
        """How the two outputs are mixed."""
        from sfumato.families.diffusion.pipeline import Guidance

        return Guidance(self.weight, self.interval, self.rescale, self.image)

    def __call__(self, x_NCHW: Tensor, t: Tensor, sigma: float | None = None) -> Tensor:
        """The guided output [N, C, H, W] at `t`, a scalar or [N], in the network's own units.

        `sigma` is the noise level of `t`, which a guidance interval needs.
        """
        from sfumato.families.diffusion.pipeline import guided_output

        return guided_output(
            self.network,
            x_NCHW,
            t,
            self.given,
            guidance=self.guidance,
            null=self.null,
            nothing=self.nothing,
            sigma=sigma,
            worse=self.worse,
        )
