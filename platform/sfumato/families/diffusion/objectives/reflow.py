"""Reflow: straighter paths, from the pairs of noise and image that a trained model makes (Liu et al. 2023).

Rectified flow between independent noise and images has crossing paths, which its solution cannot follow; that
between a noise and the image that the teacher draws from it has none to avoid, and few steps follow it (sec.
2.2, algorithm 1). The pairs are drawn while training, so the set's images are not used, only their labels:

    y = teacher(z),   x_t = (1 - t) y + t z,   L = E || v(x_t, t) - (z - y) ||^2

The student is read as its teacher is: x = x_t / (1 - t) has the noise level sigma = t / (1 - t), the velocity
is v = (x_t - D(x; sigma)) / t, so that its error is that of the image over t. Times end where sigma does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.distillation.teacher import NAME, GuidedTeacher, Taught, TaughtConfig
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.solvers import SOLVERS, Solver, integrate
from sfumato.families.diffusion.solvers.euler import Euler
from sfumato.families.diffusion.solvers.heun import Heun
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.noise_levels import karras_sigmas
from sfumato.families.diffusion.trajectory.quartiles import quartiles_of_uniform

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided


class ReflowSampling(SamplingBase):
    """How the flow is followed; `sfumato sample` may change any of it."""

    sampler: Annotated[Solver, SOLVERS] = Field(
        Euler(), description="euler: one evaluation a step; heun: two (one in the last)."
    )
    steps: int = Field(1, ge=1, description="Steps from noise to image.")


class ReflowConfig(TaughtConfig, GuidedTeacher, NoiseDraws):
    """Rectified flow on the pairs of noise and image that a teacher makes."""

    Sampling: ClassVar[type[SamplingBase]] = ReflowSampling
    kind: Literal["reflow"] = Field("reflow", description="Selects this objective.")
    solver: Annotated[Solver, SOLVERS] = Field(Heun(), description="How the teacher draws an image.")
    solver_steps: int = Field(
        10, ge=1, description="Its steps; each costs an evaluation of the teacher, with heun two."
    )

    @classmethod
    def tiny(cls) -> Self:
        """2 steps of the teacher."""
        return cls(teacher=cls.tiny_teacher(), solver_steps=2)

    def build(self, *, latents: bool = False) -> Reflow:
        """The objective of a model of pixels, or of latents."""
        return Reflow(self, latents=latents)


class Reflow(Taught):
    """Regression on the velocity between a noise and the teacher's image of it."""

    phase = "reflow"

    def __init__(self, config: ReflowConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config
        self._last = self.most / (1 + self.most)
        falling = [self.most]
        if config.solver_steps > 1:
            falling = karras_sigmas(config.solver_steps, sigma_min=self.least, sigma_max=self.most, rho=7.0)
        self._levels = [*falling, 0.0]

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, which draws the images."""
        return {NAME: self.frozen}

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Squared error of the velocity, mean over pixels."""
        u_B = self._config.uniform(rng)
        t_B = (self._last * u_B).clamp(min=self.least / (1 + self.least))
        z_BCHW = rng.normal(*batch["image"].shape[1:])
        given = labels.draw(batch, rng)

        def slope(x_BCHW: Tensor, sigma: float) -> Tensor:
            sigma_B = torch.full((len(x_BCHW),), sigma, device=x_BCHW.device)
            return (x_BCHW - self.taught(nets, x_BCHW, sigma_B, given)) / sigma

        with torch.no_grad():
            y_BCHW = integrate(self._config.solver, slope, z_BCHW * self.most, self._levels)
        sigma_B = t_B / (1 - t_B)
        x_BCHW = y_BCHW + sigma_B.view(-1, 1, 1, 1) * z_BCHW
        image_BCHW = self.denoised(nets["network"], x_BCHW, sigma_B, given)
        loss_B = ((image_BCHW - y_BCHW) / t_B.view(-1, 1, 1, 1)).square().mean(dim=(1, 2, 3))
        return LossOut(loss_B, quartiles_of_uniform(loss_B.detach(), u_B))

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: ReflowSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """The solution of dx_t/dt = v(x_t, t) at t = 0, in equal steps of t."""

        def slope(xt_NCHW: Tensor, t: float) -> Tensor:
            sigma_N = torch.full((len(xt_NCHW),), t / (1 - t), device=xt_NCHW.device)
            image_NCHW = self.denoiser.image_in(network, xt_NCHW / (1 - t), sigma_N)
            return (xt_NCHW - (image_NCHW.clamp(-1, 1) if clip else image_NCHW)) / t

        times = [self._last * (1 - i / options.steps) for i in range(options.steps)] + [0.0]
        return integrate(options.sampler, slope, noise_NCHW * self._last, times)


COMPONENT = ReflowConfig
