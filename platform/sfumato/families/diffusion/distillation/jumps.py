"""Sampling of models that answer from any noise level with an image: one step, or a few with fresh noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.distillation.teacher import Taught
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.trajectory.noise_levels import karras_sigmas

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Guided

MIDDLE = 0.821
"""The noise level of the second of two steps (Song & Dhariwal 2024, sec. 4; Geng et al. 2024)."""


class JumpSampling(SamplingBase):
    """How images are drawn; `sfumato sample` may change any of it."""

    steps: int = Field(
        1,
        ge=1,
        description="Network evaluations: each one after the first adds noise again and answers anew.",
    )
    sigmas: tuple[float, ...] | None = Field(
        None,
        description=f"Falling noise levels of the steps after the first; null means {MIDDLE} for two steps, "
        "and levels spaced by Karras et al. 2022, eq. 5, for more.",
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.sigmas is not None and len(self.sigmas) != self.steps - 1:
            raise ValueError(
                f"sigmas: got {len(self.sigmas)} for {self.steps} step(s); give one for each step after the "
                f"first ({self.steps - 1}), or leave them out"
            )
        if self.sigmas and (
            list(self.sigmas) != sorted(set(self.sigmas), reverse=True) or self.sigmas[-1] <= 0
        ):
            raise ValueError("sigmas: must be above 0 and fall from each to the next")
        return self

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """Noise levels above the one that sampling starts from."""
        most = getattr(objective, "sigma_max", None)
        if most is None or not self.sigmas or self.sigmas[0] < most:
            return []
        reason = (
            f"model.sampling.sigmas: {self.sigmas[0]:g} is not below objective.sigma_max={most:g}, where "
            "the first step starts"
        )
        return [reason]

    def later(self, least: float, most: float) -> list[float]:
        """Noise levels of all steps but the first."""
        if self.sigmas is not None:
            return list(self.sigmas)
        if self.steps == 2 and least < MIDDLE < most:
            return [MIDDLE]
        return karras_sigmas(self.steps + 1, sigma_min=least, sigma_max=most, rho=7.0)[1:-1]


def jump(
    answer: Callable[[Tensor, Tensor], Tensor],
    noise_NCHW: Tensor,
    options: JumpSampling,
    rng: SampleRng,
    *,
    least: float,
    most: float,
    clip: bool,
) -> Tensor:
    """Answer at `most`, then add noise of each later level and answer again (Song et al. 2023, algorithm 1).

    `answer` gives images at (x [N, C, H, W], sigma [N]); noise is added so that an image that still holds
    noise of `least` has the wanted level.
    """

    def at(x_NCHW: Tensor, sigma: float) -> Tensor:
        found_NCHW = answer(x_NCHW, torch.full((len(x_NCHW),), sigma, device=x_NCHW.device))
        return found_NCHW.clamp(-1, 1) if clip else found_NCHW

    x_NCHW = at(noise_NCHW * most, most)
    for sigma in options.later(least, most):
        fresh_NCHW = rng.normal(*x_NCHW.shape[1:]).to(x_NCHW.device)
        x_NCHW = at(x_NCHW + math.sqrt(max(0.0, sigma**2 - least**2)) * fresh_NCHW, sigma)
    return x_NCHW


class JumpingStudent(Taught):
    """A student that answers from any noise level with an image."""

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: JumpSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """One answer, or several with fresh noise between."""

        def answer(x_NCHW: Tensor, sigma_N: Tensor) -> Tensor:
            return self.answer_of(x_NCHW, sigma_N, self.denoiser.image_in(network, x_NCHW, sigma_N))

        return jump(answer, noise_NCHW, options, rng, least=self.remaining, most=self.most, clip=clip)

    @property
    def remaining(self) -> float:
        """The noise level that an answer still has."""
        return 0.0

    def answer_of(self, x_BCHW: Tensor, sigma_B: Tensor, image_BCHW: Tensor) -> Tensor:
        """f(x, sigma), of the image D(x; sigma) that the network tells; all [B, C, H, W]."""
        return image_BCHW
