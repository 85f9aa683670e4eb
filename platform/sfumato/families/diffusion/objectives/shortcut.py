"""Shortcut models: steps of any length, each taught by two of half its length (Frans et al. 2025).

The network s(x_t, t, d) leads from t to t - d: x_{t-d} = x_t - d s(x_t, t, d), with t from 0 (data) to 1
(noise; the paper counts the other way). At d = 0 it is the velocity; else two half steps of the average of
the network are its target (algorithm 1):

    s(x_t, t, 0)  ->  z - y
    s(x_t, t, 2d) ->  ( s(x_t, t, d) + s(x_{t-d}, t - d, d) ) / 2,    d = 1/2, 1/4, ..., 1/finest

Three rows of four learn the first, one the second. The half steps of the finest length follow the velocity.
Guidance is built in by guiding those velocities, as the authors do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import (
    GuidableObjective,
    Model,
    Objective,
    ObjectiveConfig,
    SamplingBase,
)
from sfumato.families.diffusion.objectives.mean_flow import guidance_problems, span_problems

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Given, Guided

TARGET = "target"
TIME_SCALE = 1000.0


class ShortcutSampling(SamplingBase):
    """How images are drawn; `sfumato sample` may change any of it."""

    steps: int = Field(
        1, ge=1, description="Equal steps from noise to image, one evaluation each; a power of two."
    )

    @field_validator("steps")
    @classmethod
    def _power_of_two(cls, steps: int) -> int:
        if steps & (steps - 1):
            near = 1 << round(math.log2(steps))
            raise ValueError(f"got {steps}, which is no power of two; the nearest is {near}")
        return steps

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """Finer steps than were trained."""
        assert isinstance(objective, ShortcutConfig)
        if self.steps <= objective.finest:
            return []
        return [f"model.sampling.steps: got {self.steps}, the most is {objective.finest} (objective.finest)"]


class ShortcutConfig(ObjectiveConfig, GuidableObjective):
    """Any power of two of steps from one network."""

    Sampling: ClassVar[type[SamplingBase]] = ShortcutSampling
    kind: Literal["shortcut"] = Field("shortcut", description="Selects this objective.")
    finest: int = Field(128, ge=2, description="Steps at the finest length; a power of two.")
    consistent: float = Field(0.25, ge=0, le=1, description="Share of rows taught by two half steps.")
    target_decay: float = Field(
        0.999, ge=0, lt=1, description="Of the average of the network that takes the half steps."
    )
    guidance: float = Field(1.0, ge=0, description="Guidance that is built in; 1 is none.")

    @field_validator("finest")
    @classmethod
    def _power_of_two(cls, finest: int) -> int:
        if finest & (finest - 1):
            near = 1 << round(math.log2(finest))
            raise ValueError(f"got {finest}, which is no power of two; the nearest is {near}")
        return finest

    @classmethod
    def tiny(cls) -> Self:
        """4 steps, half of the rows consistent, guided."""
        return cls(finest=4, consistent=0.5, guidance=1.5, label_dropout=0.5)

    def build(self, *, latents: bool = False) -> Shortcut:
        """The objective; it is the same for pixels and latents."""
        return Shortcut(self)

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """A network without spans, or guidance without classes that are dropped."""
        return [*span_problems(own), *guidance_problems(self.guidance, own, data)]


class Shortcut(Objective):
    """The velocity in most rows, and the mean of two half steps in the others."""

    phase = "flow"
    spans = True

    def __init__(self, config: ShortcutConfig) -> None:
        self._config = config

    def nets(self) -> Mapping[str, NetSpec]:
        """The average that takes half steps."""
        decay = self._config.target_decay
        return {TARGET: EmaOf(source="network", decay=lambda progress: decay)}

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Squared error of the step, mean over pixels."""
        y_BCHW, finest = batch["image"], self._config.finest
        doublings = finest.bit_length() - 1
        consistent_B = rng.uniform() < self._config.consistent
        # A step of 2d = 2 / pieces, which starts at a multiple of itself; the half one is 1 / pieces.
        pieces_B = torch.pow(2.0, 1 + rng.integers(doublings).float())
        start_B = 1 - torch.floor(rng.uniform() * pieces_B / 2) * 2 / pieces_B
        t_B = torch.where(consistent_B, start_B, rng.uniform())
        half_B = 1 / pieces_B
        z_BCHW = rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        x_BCHW = torch.lerp(y_BCHW, z_BCHW, t_B.view(-1, 1, 1, 1))
        with torch.no_grad():
            target = nets[TARGET]
            first_BCHW = self._half(target, x_BCHW, t_B, half_B, given, labels.null_class)
            later_BCHW = x_BCHW - half_B.view(-1, 1, 1, 1) * first_BCHW
            second_BCHW = self._half(target, later_BCHW, t_B - half_B, half_B, given, labels.null_class)
        which = consistent_B.view(-1, 1, 1, 1)
        wanted_BCHW = torch.where(which, (first_BCHW + second_BCHW) / 2, z_BCHW - y_BCHW)
        span_B = torch.where(consistent_B, 2 * half_B, torch.zeros_like(half_B))
        found_BCHW = step(nets["network"], x_BCHW, t_B, span_B, given)
        return LossOut((found_BCHW - wanted_BCHW).square().mean(dim=(1, 2, 3)))

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: ShortcutSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """Equal steps from t = 1 to 0."""
        x_NCHW, length = noise_NCHW, 1 / options.steps
        for i in range(options.steps):
            t_N = torch.full((len(x_NCHW),), 1 - i * length, device=x_NCHW.device)
            span_N = torch.full_like(t_N, length)
            x_NCHW = x_NCHW - length * step(network.network, x_NCHW, t_N, span_N, network.given)
        return x_NCHW

    def _half(
        self,
        target: nn.Module,
        x_BCHW: Tensor,
        t_B: Tensor,
        half_B: Tensor,
        given: Given | None,
        null: int | None,
    ) -> Tensor:
        """The half step of the average, [B, C, H, W]; the finest one is the velocity, guided."""
        finest_B = half_B * self._config.finest <= 1
        span_B = torch.where(finest_B, torch.zeros_like(half_B), half_B)
        found_BCHW = step(target, x_BCHW, t_B, span_B, given)
        weight = self._config.guidance
        if weight == 1 or null is None:
            return found_BCHW
        assert isinstance(given, Tensor), "guided models have classes"
        plain_BCHW = step(target, x_BCHW, t_B, span_B, torch.full_like(given, null))
        guided_BCHW = plain_BCHW + weight * (found_BCHW - plain_BCHW)
        return torch.where(finest_B.view(-1, 1, 1, 1), guided_BCHW, found_BCHW)


def step(network: nn.Module, x_BCHW: Tensor, t_B: Tensor, span_B: Tensor, given: Given | None) -> Tensor:
    """s(x_t, t, d), [B, C, H, W]."""
    return predict(network, x_BCHW, t_B * TIME_SCALE, given, span_B * TIME_SCALE)


COMPONENT = ShortcutConfig
