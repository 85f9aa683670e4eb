"""How the flow from noise to image is followed: the sampling options of rectified flow."""

from __future__ import annotations

from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from sfumato.families.diffusion.objectives import GuidedSampling
from sfumato.families.diffusion.solvers import SOLVERS, Solver
from sfumato.families.diffusion.solvers.heun import Heun

Time = TypeVar("Time", float, Tensor)


def shifted(t: Time, shift: float) -> Time:
    """shift t / (1 + (shift - 1) t), which keeps 0 and 1; t itself where `shift` is 1."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


class RectifiedFlowSampling(GuidedSampling):
    """How the flow is followed; `sfumato sample` may change any of it."""

    sampler: Annotated[Solver, SOLVERS] = Field(
        Heun(),
        description="euler: one evaluation per step; heun: second order, two (one in the last).",
    )
    steps: int = Field(25, ge=1, description="Steps from noise to image.")
    shift: float = Field(
        1.0,
        gt=0,
        description="Above 1 spends more of the steps at high noise, which large images need (Esser et al. "
        "2024, eq. 23): t becomes shift t / (1 + (shift - 1) t).",
    )

    diffusion: float = Field(
        0.0,
        ge=0,
        description="Above 0 follows, by sampler euler, the stochastic equation of the same densities whose "
        "noise has the variance diffusion t dt (Ma et al. 2024, SiT, eq. 4); 1 is theirs.",
    )

    @model_validator(mode="after")
    def _noise_by_euler(self) -> Self:
        if self.diffusion and self.sampler.kind != "euler":
            raise ValueError("diffusion: noise is added by steps of Euler; set sampler=euler")
        return self

    @property
    def adds_noise(self) -> str:
        """With `diffusion`."""
        if not self.diffusion:
            return ""
        return f"sampling.diffusion: {self.diffusion:g} adds noise in every step; set diffusion=0"

    def times(self) -> list[float]:
        """From 1 to 0, `steps` + 1 of them."""
        even = [1 - i / self.steps for i in range(self.steps + 1)]
        return [shifted(t, self.shift) for t in even]
