"""Rectified flow: straight paths from noise to data (Liu et al. 2023; Esser et al. 2024).

With t from 0 (data) to 1 (noise), as in Esser et al. 2024 (Liu et al. count the other way),

    x_t = (1 - t) x_0 + t eps,    dx_t/dt = eps - x_0,
    L = E_{x_0, eps, t} || f(x_t, t, c) - (eps - x_0) ||^2

Sampling solves dx/dt = f(x, t, c) from t = 1 to 0. The network sees 1000 t, the range that its sinusoidal
embedding was made for.

With `predict: image` the network tells x_0, from which the velocity (x_t - x_0) / t follows, and the loss
stays that of the velocity (Li & He 2025, "JiT").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut, Nets
from sfumato.core.paths import Level
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import (
    BoundedObjective,
    DenoisingObjective,
    GuidableObjective,
    ObjectiveConfig,
    Output,
    SamplingBase,
)
from sfumato.families.diffusion.solvers import integrate
from sfumato.families.diffusion.trajectory import couplings
from sfumato.families.diffusion.trajectory.flow_likelihood import even_levels, flow_bits
from sfumato.families.diffusion.trajectory.flow_noise import follow
from sfumato.families.diffusion.trajectory.flow_sampling import RectifiedFlowSampling, shifted
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.quartiles import quartiles_of_normal, quartiles_of_uniform

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided

TIME_SCALE = 1000.0
LEAST_TIME = 0.05
"""Below it, the velocity of a predicted image is that of this time (JiT, table 9)."""


class RectifiedFlowConfig(ObjectiveConfig, GuidableObjective, NoiseDraws):
    """Straight paths; the network predicts the velocity, or the image."""

    output_units: ClassVar[tuple[str, ...]] = ("predict",)
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

    predict: Literal["velocity", "image"] = Field(
        "velocity",
        description="What the network returns. image suits transformers with large patches of pixels (Li & "
        "He 2025): an image lies near few dimensions, noise and velocity do not.",
    )
    coupling: Literal["independent", "optimal"] = Field(
        "independent",
        description="How noise meets images: as drawn, or by the assignment within a micro-batch that has "
        "the shortest paths (Tong et al. 2024, Pooladian et al. 2023), which makes them straighter.",
    )
    contrast: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Weight of the distance to the velocity of another row, which is subtracted (contrastive "
        "flow matching, Stoica et al. 2025, eq. 5; theirs is 0.05).",
    )

    def couples_rows(self) -> bool:
        """Rows of a micro-batch meet in `coupling` and `contrast`."""
        return self.coupling == "optimal" or self.contrast > 0

    def compared_rows(self) -> int:
        """Pairs, for `contrast`."""
        return 2 if self.contrast else 1

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
        if self._config.coupling == "optimal":
            eps_BCHW = couplings.nearest(x0_BCHW, eps_BCHW)
        given = labels.draw(batch, rng)
        t_B111 = t_B.view(-1, 1, 1, 1)
        xt_BCHW = (1 - t_B111) * x0_BCHW + t_B111 * eps_BCHW
        output_BCHW = predict(nets["network"], xt_BCHW, t_B * TIME_SCALE, given)
        true_BCHW = eps_BCHW - x0_BCHW
        if self._config.predict == "image":
            least_B111 = t_B111.clamp(min=LEAST_TIME)
            output_BCHW = (xt_BCHW - output_BCHW) / least_B111
            true_BCHW = (xt_BCHW - x0_BCHW) / least_B111
        loss_B = (output_BCHW - true_BCHW).square().mean(dim=(1, 2, 3))
        if self._config.contrast:
            loss_B = loss_B - self._config.contrast * couplings.to_others(output_BCHW, true_BCHW)
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
            output_NCHW = network(x_NCHW, torch.tensor(t * TIME_SCALE, device=x_NCHW.device), sigma)
            if not clip and self._config.predict == "velocity":
                return output_NCHW
            # The image that the path leads to; the clipped image's velocity leads there.
            image_NCHW = self._image(output_NCHW, x_NCHW, t)
            return (x_NCHW - (image_NCHW.clamp(-1, 1) if clip else image_NCHW)) / t

        if options.diffusion:
            return follow(slope, noise_NCHW, options.times()[first:], options.diffusion, rng)
        return integrate(options.sampler, slope, noise_NCHW, options.times()[first:])

    def noise_levels(self, options: RectifiedFlowSampling) -> list[Level]:
        """Those of the times: 1 - t of the image, t of the noise."""
        return [Level(1 - t, t, t * TIME_SCALE) for t in options.times()]

    def image(self, network: Guided, x_NCHW: Tensor, level: Level) -> Tensor:
        """x_t - t f, where the straight path ends."""
        sigma = level.noise / level.signal if level.signal else math.inf
        output_NCHW = network(x_NCHW, torch.tensor(level.time, device=x_NCHW.device), sigma)
        return self._image(output_NCHW, x_NCHW, level.noise)

    def diffusers_flow(self, options: RectifiedFlowSampling) -> Any:
        """Euler's method; pipelines take the steps of `times` with sigmas = [1 - i / n for i in range(n)]."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        if self._config.predict == "image" or options.diffusion:
            raise ConfigError(
                "model.objective.predict: diffusers' pipelines of flows take velocities and add no noise; "
                "use --format safetensors"
            )
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
        return self._image(output(xt_BCHW, t_B * TIME_SCALE), xt_BCHW, t_B111)

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
            output_BCHW = network(xt_BCHW, torch.tensor(t * TIME_SCALE, device=x_BCHW.device))
            return self._image(output_BCHW, xt_BCHW, t)

        return flow_bits(image, x0_BCHW, even_levels(options.likelihood_steps), rng)

    def _image(self, output_BCHW: Tensor, xt_BCHW: Tensor, t: float | Tensor) -> Tensor:
        """The image that the network's output tells: x_t - t f, where the straight path ends."""
        return output_BCHW if self._config.predict == "image" else xt_BCHW - t * output_BCHW

    def _draw_times(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """t [B], and the standard variable [B] that it is a rising function of."""
        if self._config.times == "uniform":
            t_B = self._config.uniform(rng)
            return t_B, t_B
        z_B = self._config.normal(rng)
        return torch.sigmoid(self._config.logit_mean + self._config.logit_std * z_B), z_B


COMPONENT = RectifiedFlowConfig
