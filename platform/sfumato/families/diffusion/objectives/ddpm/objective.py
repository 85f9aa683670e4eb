"""Denoising diffusion on T discrete noise levels (Ho et al. 2020), drawn by diffusers' samplers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.core.family import LossOut, Nets
from sfumato.core.paths import Level
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.objectives import (
    BoundedObjective,
    DenoisingObjective,
    GuidableObjective,
    GuidedSampling,
    ObjectiveConfig,
    Output,
    SamplingBase,
)
from sfumato.families.diffusion.objectives.ddpm.bound import Prediction, bound_bits
from sfumato.families.diffusion.objectives.ddpm.loss import DenoisingLoss
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.objectives.ddpm.target import Target
from sfumato.families.diffusion.samplers import SAMPLERS, NoiseLevels, Sampler, Schedule
from sfumato.families.diffusion.samplers.ddim import Ddim
from sfumato.families.diffusion.samplers.dpmsolver import DpmSolver
from sfumato.families.diffusion.trajectory.flow_likelihood import even_levels, flow_bits
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.weightings import WEIGHTINGS, Weighting
from sfumato.families.diffusion.weightings.plain import Plain

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided


class DDPMSampling(GuidedSampling):
    """How images are drawn; `sfumato sample` may change any of it."""

    sampler: Annotated[Sampler, SAMPLERS, Before(2, Ddim())] = Field(
        DpmSolver(),
        description="ddpm: ancestral (Ho et al. 2020); ddim (Song et al. 2021); dpmsolver++ and "
        "sde-dpmsolver++: multistep, deterministic or not (Lu et al. 2022); unipc (Zhao et al. 2023).",
    )
    eta: float = Field(0.0, ge=0, le=1, description="Noise of ddim: 0 is deterministic, 1 is like ddpm.")
    likelihood: Literal["bound", "flow"] = Field(
        "bound",
        description="bits_per_dim: the variational bound (Ho et al. 2020, eq. 5), or the likelihood of the "
        "probability flow (Song et al. 2021, eq. 39), which compares with that of edm and rectified_flow.",
    )

    @model_validator(mode="after")
    def _eta_has_effect(self) -> Self:
        if self.eta and not self.sampler.takes_eta:
            raise ValueError(
                f"eta: {self.eta:g} has no effect on {self.sampler.kind}; set eta=0 or sampler=ddim"
            )
        return self

    @property
    def adds_noise(self) -> str:
        """Of ancestral samplers, and of ddim with eta."""
        if self.eta:
            return f"sampling.eta: {self.eta:g} adds noise in every step; set eta=0"
        if self.sampler.adds_noise:
            kind = self.sampler.kind
            return f"sampling.sampler: {kind} adds noise in every step; use dpmsolver++, ddim or unipc"
        return ""

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """More steps than there are noise levels."""
        assert isinstance(objective, DDPMConfig)
        most = objective.timesteps
        if self.steps <= most:
            return []
        return [f"model.sampling.steps: got {self.steps}, the most is {most} (objective.timesteps)"]


class DDPMConfig(ObjectiveConfig, GuidableObjective, NoiseDraws):
    """Discrete noise levels; the network predicts the noise or v."""

    Sampling: ClassVar[type[SamplingBase]] = DDPMSampling
    output_units: ClassVar[tuple[str, ...]] = ("prediction", "schedule", "timesteps", "betas")
    kind: Literal["ddpm"] = Field("ddpm", description="Selects this objective.")
    prediction: Literal["epsilon", "v"] = Field(
        "v", description="Target: the noise (Ho et al. 2020) or v (Salimans & Ho 2022)."
    )
    schedule: Schedule = Field(
        "cosine",
        description="Noise schedule: linear betas (Ho et al. 2020), scaled_linear, whose roots are linear "
        "(Stable Diffusion; Rombach et al. 2022), or cosine (Nichol & Dhariwal 2021).",
    )
    timesteps: int = Field(1000, ge=2, description="T, the number of noise levels.")
    betas: tuple[float, float] | None = Field(
        None,
        description="First and last beta of a schedule that is not cosine; null: 0.0001 and 0.02, times "
        "1000 / timesteps. Stable Diffusion has 0.00085 and 0.012.",
    )
    weighting: Annotated[Weighting, WEIGHTINGS] = Field(
        Plain(),
        description="Weight of the loss by noise level: plain; min_snr (Hang et al. 2023); p2 (Choi et al. "
        "2022).",
    )
    zero_terminal_snr: bool = Field(
        False,
        description="Rescale the schedule so that the last noise level is noise alone, where sampling starts "
        "(Lin et al. 2023); needs prediction=v.",
    )
    variance: Literal["fixed", "learned"] = Field(
        "fixed",
        description="Variance of the reverse steps: fixed, or learned by twice as many outputs (Nichol & "
        "Dhariwal 2021), which the sampler ddpm and the bound on the likelihood use.",
    )
    bound_weight: float = Field(
        1e-3,
        gt=0,
        description="Weight of the variational bound, in bits per dimension, in the loss of a learned "
        "variance (lambda of L_hybrid).",
    )

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        if self.bound_weight != 1e-3 and self.variance == "fixed":
            raise ValueError("bound_weight: has no effect with variance=fixed; leave it out")
        if self.betas is not None and self.schedule == "cosine":
            raise ValueError("betas: has no effect with schedule=cosine; leave it out")
        if self.betas is not None and not 0 < self.betas[0] <= self.betas[1] < 1:
            raise ValueError(f"betas: got {self.betas[0]:g} to {self.betas[1]:g}; give 0 < first <= last < 1")
        if not self.zero_terminal_snr:
            return self
        if self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr: the noise of an image that is noise alone says nothing of the image; use "
                "prediction=v"
            )
        if not self.weighting.weight(torch.zeros(1), torch.ones(1)).item():
            raise ValueError(
                f"zero_terminal_snr: weighting={self.weighting.kind} gives the last noise level no weight; "
                "use weighting=plain"
            )
        return self

    @property
    def levels(self) -> NoiseLevels:
        """What a sampler needs to know."""
        return NoiseLevels(
            self.timesteps,
            self.schedule,
            self.prediction,
            self.zero_terminal_snr,
            self.variance == "learned",
            self.betas,
        )

    @classmethod
    def tiny(cls) -> Self:
        """20 noise levels."""
        return cls(timesteps=20)

    @classmethod
    def tiny_sampling(cls) -> DDPMSampling:
        """3 steps, guided, with a bound on the likelihood."""
        return DDPMSampling(steps=3, guidance=1.5, likelihood_steps=4)

    def build(self, *, latents: bool = False) -> DDPM:
        """The objective of a model of pixels, or of latents."""
        return DDPM(self, latents=latents)


class DDPM(BoundedObjective, DenoisingObjective):
    """The loss of Ho et al. 2020, eq. 14, with diffusers' samplers for it."""

    phase = "denoise"

    def __init__(self, config: DDPMConfig, *, latents: bool = False) -> None:
        self._config = config
        self._schedule = NoiseSchedule(
            config.schedule,
            config.timesteps,
            zero_terminal_snr=config.zero_terminal_snr,
            ends=config.betas,
        )
        self.outputs = 2 if config.variance == "learned" else 1
        self._target = Target(config.prediction, self._schedule)
        self._loss = DenoisingLoss(
            self._target,
            config.weighting,
            config,
            bound_weight=config.bound_weight if config.variance == "learned" else None,
            eight_bit=not latents,
        )

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """See `loss`."""
        return self._loss(nets["network"], batch, labels, rng)

    def image_in(self, output: Output, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """At the timestep, not a whole number, that has this noise level."""
        root_B111 = (1 + sigma_B.square()).sqrt().view(-1, 1, 1, 1)
        xt_BCHW = x_BCHW / root_B111
        raw_BCHW = output(xt_BCHW, self._schedule.time_of(sigma_B))[:, : x_BCHW.shape[1]]
        if self._config.prediction == "epsilon":
            return x_BCHW - sigma_B.view(-1, 1, 1, 1) * raw_BCHW
        return (xt_BCHW - sigma_B.view(-1, 1, 1, 1) * raw_BCHW) / root_B111

    def highest(self) -> float:
        """That of the last timestep whose image is not noise alone."""
        return float(self._schedule.sigmas[-1])

    def bits_per_dim(self, network: Guided, x0_BCHW: Tensor, options: DDPMSampling, rng: Rng) -> Tensor:
        """The bound that the options name, [B]; see `bound` and `flow_likelihood`.

        The variational one clips predicted images to [-1, 1]. Its reverse steps have the learned variance or
        beta_t, of the two of Ho et al. (sec. 3.2) the one whose bound is tighter, and the last one that of
        the posterior at their t = 2, as in the authors' code.
        """
        steps = options.likelihood_steps
        assert steps is not None, "asked for"
        if options.likelihood == "flow":
            sigmas = self._schedule.sigmas_near(even_levels(steps))

            def image(x_BCHW: Tensor, sigma: float) -> Tensor:
                t_B = torch.full((len(x_BCHW),), sigmas[sigma], device=x_BCHW.device)
                xt_BCHW = x_BCHW / math.sqrt(1 + sigma**2)
                return self._target.image(network(xt_BCHW, t_B), xt_BCHW, t_B)

            return flow_bits(image, x0_BCHW, list(sigmas), rng)

        def reverse(xt_BCHW: Tensor, t_B: Tensor) -> Prediction:
            found = self._target.read(network(xt_BCHW, t_B), xt_BCHW, t_B)
            return found._replace(image=found.image.clamp(-1, 1))

        return bound_bits(reverse, x0_BCHW, self._schedule, steps, rng)

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: DDPMSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """A trajectory of the diffusers scheduler that the options name."""
        from sfumato.families.diffusion.pipeline import denoise

        return denoise(
            network.network,
            self.diffusers_scheduler(options, clip=clip),
            noise_NCHW,
            steps=options.steps,
            generators=rng.generators,
            eta=options.eta,
            given=network.given,
            guidance=network.guidance,
            null=network.null,
            nothing=network.nothing,
            worse=network.worse,
            first=first,
        )

    def noise_levels(self, options: DDPMSampling) -> list[Level]:
        """Those of the scheduler's timesteps."""
        from sfumato.families.diffusion.pipeline import set_timesteps

        scheduler = self.diffusers_scheduler(options, clip=False)
        set_timesteps(scheduler, options.steps)
        alpha_bar = self._schedule.alpha_bar
        found = [
            Level(math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t]), t)
            for t in scheduler.timesteps.tolist()
        ]
        return [*found, Level(1.0, 0.0, 0.0)]

    def image(self, network: Guided, x_NCHW: Tensor, level: Level) -> Tensor:
        """By the network's noise or v."""
        t = torch.tensor(int(level.time), device=x_NCHW.device)  # a scalar: guidance doubles the rows
        sigma = level.noise / level.signal if level.signal else math.inf
        return self._target.image(network(x_NCHW, t, sigma), x_NCHW, t.expand(len(x_NCHW)))

    def diffusers_scheduler(self, options: DDPMSampling, *, clip: bool) -> Any:
        """A fresh one: it holds the state of one trajectory."""
        return options.sampler.scheduler(self._config.levels, clip=clip)
