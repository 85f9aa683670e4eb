"""The samplers of EDM: noise levels of eq. 5, Heun's method, and churn (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.earlier_defaults import Before
from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.objectives import GuidedSampling
from sfumato.families.diffusion.solvers import SOLVERS, Solver
from sfumato.families.diffusion.solvers.heun import Heun
from sfumato.families.diffusion.trajectory.noise_levels import (
    IN_PROPORTION,
    SIGMA_MAX,
    SIGMA_MIN,
    karras_sigmas,
    sigma_range,
)

MOST_CHURN = math.sqrt(2) - 1
"""A step adds at most as much noise as is present (algorithm 2)."""


class EDMSampling(GuidedSampling):
    """How images are drawn; `sfumato sample` may change any of it."""

    sampler: Annotated[Solver, SOLVERS] = Field(
        Heun(), description="heun: second order, 2 steps - 1 network evaluations; euler: one per step."
    )
    steps: int = Field(18, ge=2, description="Steps from noise to image.")
    sigma_min: Annotated[float | None, Before(2, SIGMA_MIN)] = Field(
        None, gt=0, description=f"Least noise level before zero; null means {SIGMA_MIN} {IN_PROPORTION}."
    )
    sigma_max: Annotated[float | None, Before(2, SIGMA_MAX)] = Field(
        None, gt=0, description=f"Noise level at the start; null means {SIGMA_MAX:g} {IN_PROPORTION}."
    )
    rho: float = Field(7.0, ge=1, description="Spacing of the noise levels: larger dwells at low noise.")
    churn: float = Field(
        0.0, ge=0, description="S_churn: noise added and removed again over all steps; 0 is deterministic."
    )
    churn_min: float = Field(0.0, ge=0, description="S_tmin: noise level below which nothing is added.")
    churn_max: float | None = Field(
        None, gt=0, description="S_tmax: noise level above which nothing is added; null sets no bound."
    )
    churn_noise: float = Field(
        1.0, gt=0, description="S_noise: factor of the added noise, slightly above 1 against lost detail."
    )

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        low, high = sigma_range(self.sigma_min, self.sigma_max)
        if low >= high:
            raise ValueError(f"sigma_min: {low:g} is not below sigma_max={high:g}")
        if not self.churn and (self.churn_min, self.churn_max, self.churn_noise) != (0.0, None, 1.0):
            raise ValueError(
                "churn_min, churn_max and churn_noise have no effect with churn=0; leave them out"
            )
        if self.churn_max is not None and self.churn_min > self.churn_max:
            raise ValueError(
                f"churn_min: {self.churn_min:g} is above churn_max={self.churn_max:g}, so no noise level is "
                "churned; set it lower"
            )
        return self

    @property
    def adds_noise(self) -> str:
        """With churn."""
        return f"sampling.churn: {self.churn:g} adds noise in every step; set churn=0" if self.churn else ""

    def sigmas(self, scale: float = 1.0) -> list[float]:
        """Falling noise levels, `steps` + 1 of them, the last one zero; `scale` is that of the data."""
        low, high = sigma_range(self.sigma_min, self.sigma_max, scale)
        levels = karras_sigmas(self.steps, sigma_min=low, sigma_max=high, rho=self.rho)
        return [*levels, 0.0]


def churn(options: EDMSampling, rng: SampleRng) -> Callable[[Tensor, float], tuple[Tensor, float]]:
    """The part of algorithm 2 before a step: raise the noise level by 1 + gamma, and x with it."""
    most = math.inf if options.churn_max is None else options.churn_max

    def raised(x_NCHW: Tensor, sigma: float) -> tuple[Tensor, float]:
        gamma = min(options.churn / options.steps, MOST_CHURN) if options.churn_min <= sigma <= most else 0.0
        if not gamma:
            return x_NCHW, sigma
        higher = sigma * (1 + gamma)
        noise_NCHW = rng.normal(*x_NCHW.shape[1:]).to(x_NCHW.device)
        return x_NCHW + math.sqrt(higher**2 - sigma**2) * options.churn_noise * noise_NCHW, higher

    return raised
