"""Preference tuning on pairs of images (Diffusion-DPO; Wallace et al. 2024, eq. 14).

With L the loss of the model's own objective, w the image that was preferred, l the other one, and the same
noise and noise level for all four terms,

    - log sigmoid(- beta / 2 (L(w) - L_ref(w) - (L(l) - L_ref(l))))

where L_ref is the loss of the model as it was. L is a mean over values, as in the authors' code, in whose
units beta is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import LossOut, Nets
from sfumato.core.rng import Rng

REFERENCE = "reference_model"
"""Of the frozen network among the family's networks."""
REJECTED = "rejected_image"
"""In a prepared batch: the other image, where the model works."""


class PreferenceConfig(Config):
    """Tune by pairs instead of by images."""

    column: str = Field(
        "rejected", description="The column that holds the image that was not preferred; `image` was."
    )
    beta: float = Field(
        5000.0, gt=0, description="How strongly the tuned model is held to what it was; more holds it less."
    )

    def problems(self, data: DataSpec, *, pretrained: bool) -> list[str]:
        """A column that is missing or of other images; no model to tune."""
        if not pretrained:
            return ["model.preference: tunes a trained model; name it in model.pretrained"]
        column = data.columns.get(self.column)
        if column is None or column.kind != "image" or tuple(column.shape) != data.shape:
            has = ", ".join(data.columns)
            ours = "x".join(map(str, data.shape))
            lacks = f"the data has no images {self.column!r} of {ours}, only {has}"
            return [f"model.preference.column: {lacks}; name it in data.columns"]
        return []


class Loss(Protocol):
    """That of an objective: (nets, batch, rng) -> LossOut."""

    def __call__(self, nets: Nets, batch: Batch, rng: Rng) -> LossOut: ...


def preference_loss(config: PreferenceConfig, loss: Loss, nets: Nets, batch: Batch, rng: Rng) -> LossOut:
    """One value per pair, [B]; the metrics say how often the model already tells the two apart."""
    draws = Replayed(rng)
    other: Batch = {**batch, "image": batch[REJECTED]}
    before: Mapping[str, torch.nn.Module] = {**nets, "network": nets[REFERENCE]}

    def of(chosen: Nets, rows: Batch) -> Tensor:
        draws.again()
        return loss(chosen, rows, draws).loss_B

    with torch.no_grad():
        reference_B = of(before, batch) - of(before, other)
    gap_B = of(nets, batch) - of(nets, other) - reference_B
    margin_B = -0.5 * config.beta * gap_B
    told_B = (margin_B.detach() > 0).float()
    return LossOut(-F.logsigmoid(margin_B), {"accuracy": told_B, "margin": margin_B.detach()})


class Replayed:
    """Noise whose draws are repeated after `again`; implements `core.rng.Rng`."""

    def __init__(self, rng: Rng) -> None:
        self._rng, self._at = rng, 0
        self._draws: list[Tensor] = []

    @property
    def rows(self) -> int:
        return self._rng.rows

    def again(self) -> None:
        """The next draw is the first one."""
        self._at = 0

    def normal(self, *tail: int) -> Tensor:
        return self._next(lambda: self._rng.normal(*tail))

    def uniform(self, *tail: int) -> Tensor:
        return self._next(lambda: self._rng.uniform(*tail))

    def integers(self, high: int, *tail: int) -> Tensor:
        return self._next(lambda: self._rng.integers(high, *tail))

    def stratified(self) -> Tensor:
        return self._next(self._rng.stratified)

    def _next(self, draw: Callable[[], Tensor]) -> Tensor:
        if self._at == len(self._draws):
            self._draws.append(draw())
        self._at += 1
        return self._draws[self._at - 1]
