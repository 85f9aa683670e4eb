"""What draws a condition of a model where the user gives none: the model below in a cascade, or a prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch.nn.functional as F

from sfumato.core.family import Nets, NetSpec, Phase, SampleRequest
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.rng import SampleRng
from sfumato.core.schedules import EmaSchedule
from sfumato.families.diffusion.adapters import AdapterConfig, Lower, Steering
from sfumato.families.diffusion.below import Below
from sfumato.families.diffusion.prior import Prior
from sfumato.text.condition import TextCondition

DRAWN = "drawn"
"""Among the conditions of a request, one of which was drawn."""


class Drawing(Protocol):
    """Its networks and phases belong to the family above; its samplers are among the networks."""

    nets: Mapping[str, NetSpec]
    samplers: Sequence[str]
    phases: Sequence[Phase]
    noise: float
    """Standard deviation of the noise that is added to what is drawn."""

    def completed(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> SampleRequest:
        """The request with what was not given; `DRAWN` is then among its conditions."""
        ...


def drawing_of(
    adapter: AdapterConfig | None, text: TextCondition | None, optimizer: OptimizerConfig, ema: EmaSchedule
) -> Drawing | None:
    """What the adapter asks for; it trains as its model does, and reads the same texts."""
    if adapter is None:
        return None
    if adapter.lower is not None:
        return FromBelow(adapter.lower)
    steering = adapter.steering()
    if steering is None:
        return None
    assert text is not None, "checked among the problems"
    return FromPrior(steering, text, optimizer, ema)


class FromBelow:
    """Pictures of the model below, every pixel repeated."""

    phases: Sequence[Phase] = ()

    def __init__(self, lower: Lower) -> None:
        self._lower, self._below = lower, Below.open(lower.reference)
        self.nets: Mapping[str, NetSpec] = dict(self._below.frozen)
        self.samplers: Sequence[str] = tuple(self._below.frozen)
        self.noise = lower.noise

    def completed(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> SampleRequest:
        """With noise, if there is to be any."""
        if self._lower.condition in request.conditions:
            return request
        drawn = self._below.draw(nets, request.conditions, request.num, rng)
        if self.noise:
            drawn = drawn + self.noise * rng.branch("augmentation").normal(*drawn.shape[1:]).to(drawn.device)
        large = F.interpolate(drawn, scale_factor=self._lower.factor, mode="nearest").cpu()
        return replace(request, conditions={**request.conditions, self._lower.condition: large, DRAWN: large})


class FromPrior:
    """Embeddings that belong to the request's texts."""

    noise = 0.0

    def __init__(
        self, steering: Steering, text: TextCondition, optimizer: OptimizerConfig, ema: EmaSchedule
    ) -> None:
        self._condition = steering.condition
        self.prior = Prior(steering.prior, steering.length, text, optimizer, ema, steering.column)
        self.nets: Mapping[str, NetSpec] = self.prior.nets
        self.samplers: Sequence[str] = self.prior.samplers
        self.phases: Sequence[Phase] = (self.prior.phase,)

    def completed(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> SampleRequest:
        """By the prior's own options."""
        if self._condition in request.conditions:
            return request
        drawn = self.prior.draw(nets, request, rng).cpu()
        return replace(request, conditions={**request.conditions, self._condition: drawn, DRAWN: drawn})
