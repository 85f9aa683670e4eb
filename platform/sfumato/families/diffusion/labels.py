"""Class labels: dropped in training so that the network learns both models, and guided in sampling.

Classifier-free guidance (Ho & Salimans 2022): one network is trained with its labels replaced by a null
class now and then (algorithm 1), and sampled from a mixture of its two outputs (eq. 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.rng import Rng


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
class Guided:
    """A network with the labels and the guidance of one call of `sample`.

    `weight` is guidance 1 + w of the paper's eq. 6: 1 is the plain conditional model.
    """

    network: nn.Module
    labels_N: Tensor | None
    weight: float
    null_class: int

    def __call__(self, x_NCHW: Tensor, t: Tensor) -> Tensor:
        """The guided output [N, C, H, W] at `t`, a scalar or [N], in the network's own units."""
        from sfumato.families.diffusion.pipeline import guided_output  # loads diffusers

        return guided_output(
            self.network, x_NCHW, t, self.labels_N, guidance=self.weight, null_class=self.null_class
        )
