"""Rectified flow: straight paths from noise to data (Liu et al. 2023; Esser et al. 2024).

With t from 0 (data) to 1 (noise), as in Esser et al. 2024 (Liu et al. count the other way),

    x_t = (1 - t) x_0 + t eps,    dx_t/dt = eps - x_0,
    L = E_{x_0, eps, t} || f(x_t, t, c) - (eps - x_0) ||^2

Sampling solves dx/dt = f(x, t, c) from t = 1 to 0. The network sees 1000 t, the range that its sinusoidal
embedding was made for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut, Nets
from sfumato.core.paths import Level
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.diffusion.flow_likelihood import even_levels, flow_bits
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.noise_draws import NoiseDraws
from sfumato.families.diffusion.objectives import (
    BoundedObjective,
    DenoisingObjective,
    GuidableObjective,
    GuidedSampling,
    ObjectiveConfig,
    Output,
    SamplingBase,
)
from sfumato.families.diffusion.quartiles import quartiles_of_normal, quartiles_of_uniform
from sfumato.families.diffusion.solvers import SOLVERS, Solver, integrate
from sfumato.families.diffusion.solvers.heun import Heun

if TYPE_CHECKING:
    from sfumato.families.diffusion.labels import Conditioning, Guided

TIME_SCALE = 1000.0


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

    def times(self) -> list[float]:
        """From 1 to 0, `steps` + 1 of them."""
        even = [1 - i / self.steps for i in range(self.steps + 1)]
        return [shifted(t, self.shift) for t in even]


class RectifiedFlowConfig(ObjectiveConfig, GuidableObjective, NoiseDraws):
    """Straight paths; the network predicts the velocity."""

    Sampling: ClassVar[type[SamplingBase]] = RectifiedFlowSampling
    kind: Literal["rectified_flow"] = Field("rectified_flow", description="Selects this objective.")
    times: Literal["logit_normal", "uniform"] = Field(
        "logit_normal",
        description="Distribution of t in training: uniform (Liu et al. 2023), or the logistic function of a "
        "normal variable, which dwells in the middle (Esser et al. 2024, eq. 19).",
    )
    logit_mean: float = Field(0.0, description="Mean of the normal variable; above 0 favours noise.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of the normal variable.")
    shift: float = Field(
        1.0,
        gt=0,
        description="Above 1 trains more at high noise, which large images need (Esser et al. 2024, eq. "
        "23): t "
        "becomes shift t / (1 + (shift - 1) t). Sampling has its own.",
    )

    @model_validator(mode="after")
    def _logit_has_effect(self) -> Self:
        if self.times == "uniform" and (self.logit_mean, self.logit_std) != (0.0, 1.0):
            raise ValueError("logit_mean and logit_std have no effect on times=uniform; leave them out")
        return self

    @classmethod
    def tiny_sampling(cls) -> RectifiedFlowSampling:
        """3 steps, guided, and a likelihood."""
        return RectifiedFlowSampling(steps=3, guidance=1.5, likelihood_steps=3)

    def build(self, *, latents: bool = False) -> RectifiedFlow:
        """The objective; it is the same for pixels and latents."""
        return RectifiedFlow(self)


class RectifiedFlow(BoundedObjective, DenoisingObjective):
    """Regression on the velocity, and the solvers of its flow."""

    phase = "flow"

    def __init__(self, config: RectifiedFlowConfig) -> None:
        self._config = config

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Squared error of the velocity, mean over pixels."""
        x0_BCHW = batch["image"]
        t_B, level_B = self._draw_times(rng)
        t_B = shifted(t_B, self._config.shift)
        eps_BCHW = rng.normal(*x0_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        t_B111 = t_B.view(-1, 1, 1, 1)
        xt_BCHW = (1 - t_B111) * x0_BCHW + t_B111 * eps_BCHW
        velocity_BCHW = predict(nets["network"], xt_BCHW, t_B * TIME_SCALE, given)
        loss_B = (velocity_BCHW - (eps_BCHW - x0_BCHW)).square().mean(dim=(1, 2, 3))
        by_level = quartiles_of_uniform if self._config.times == "uniform" else quartiles_of_normal
        return LossOut(loss_B, by_level(loss_B.detach(), level_B))

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: RectifiedFlowSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """The solution of dx/dt = f(x, t) at t = 0."""

        def slope(x_NCHW: Tensor, t: float) -> Tensor:
            sigma = t / (1 - t) if t < 1 else math.inf
            velocity_NCHW = network(x_NCHW, torch.tensor(t * TIME_SCALE, device=x_NCHW.device), sigma)
            if not clip:
                return velocity_NCHW
            # x_t - t f is the image that the path leads to; the clipped image's velocity leads there.
            return (x_NCHW - (x_NCHW - t * velocity_NCHW).clamp(-1, 1)) / t

        return integrate(options.sampler, slope, noise_NCHW, options.times()[first:])

    def noise_levels(self, options: RectifiedFlowSampling) -> list[Level]:
        """Those of the times: 1 - t of the image, t of the noise."""
        return [Level(1 - t, t, t * TIME_SCALE) for t in options.times()]

    def image(self, network: Guided, x_NCHW: Tensor, level: Level) -> Tensor:
        """x_t - t f, where the straight path ends."""
        sigma = level.noise / level.signal if level.signal else math.inf
        return x_NCHW - level.noise * network(x_NCHW, torch.tensor(level.time, device=x_NCHW.device), sigma)

    def diffusers_flow(self, options: RectifiedFlowSampling) -> Any:
        """Euler's method; pipelines take the steps of `times` with sigmas = [1 - i / n for i in range(n)]."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        if options.sampler.kind != "euler":
            raise ConfigError(
                "sampling.sampler: diffusers' pipelines of flows step by euler; set it to euler"
            )
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TIME_SCALE), shift=options.shift)

    def image_in(self, output: Output, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """x_t - t f(x_t, t), where x = x_t / (1 - t) has the noise t / (1 - t)."""
        t_B = sigma_B / (1 + sigma_B)
        t_B111 = t_B.view(-1, 1, 1, 1)
        xt_BCHW = (1 - t_B111) * x_BCHW
        return xt_BCHW - t_B111 * output(xt_BCHW, t_B * TIME_SCALE)

    def highest(self) -> float:
        """None: t goes up to 1."""
        return math.inf

    def bits_per_dim(
        self, network: Guided, x0_BCHW: Tensor, options: RectifiedFlowSampling, rng: Rng
    ) -> Tensor:
        """The likelihood of the flow, [B] (`flow_likelihood`): x_t / (1 - t) has the noise t / (1 - t)."""
        assert options.likelihood_steps is not None, "asked for"

        def image(x_BCHW: Tensor, sigma: float) -> Tensor:
            t = sigma / (1 + sigma)
            xt_BCHW = (1 - t) * x_BCHW
            return xt_BCHW - t * network(xt_BCHW, torch.tensor(t * TIME_SCALE, device=x_BCHW.device))

        return flow_bits(image, x0_BCHW, even_levels(options.likelihood_steps), rng)

    def _draw_times(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """t [B], and the standard variable [B] that it is a rising function of."""
        if self._config.times == "uniform":
            t_B = self._config.uniform(rng)
            return t_B, t_B
        z_B = self._config.normal(rng)
        return torch.sigmoid(self._config.logit_mean + self._config.logit_std * z_B), z_B


COMPONENT = RectifiedFlowConfig
