"""EDM: preconditioned denoising at continuous noise levels (Karras et al. 2022).

The data has standard deviation sigma_data; the denoiser of y + n, n ~ N(0, sigma^2), is (eq. 7, table 1)

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip  = sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out   = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    c_in    = 1 / sqrt(sigma^2 + sigma_data^2)
    c_noise = ln(sigma) / 4

and is trained with weight lambda = 1 / c_out^2 at ln sigma ~ N(P_mean, P_std^2), which is (eq. 8)

    L = E || F(c_in (y + n), c_noise) - (y - c_skip (y + n)) / c_out ||^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.earlier_defaults import Before
from sfumato.core.family import LossOut, Nets
from sfumato.core.paths import Level
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.augmentation import CHANGES, changed
from sfumato.families.diffusion.objectives import (
    BoundedObjective,
    DenoisingObjective,
    GuidableObjective,
    Model,
    ObjectiveConfig,
    Output,
    SamplingBase,
)
from sfumato.families.diffusion.objectives.edm.sampling import EDMSampling, churn
from sfumato.families.diffusion.solvers import integrate
from sfumato.families.diffusion.trajectory.flow_likelihood import even_levels, flow_bits
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.noise_levels import (
    LATENT_STD,
    PIXEL_STD,
    data_std,
    noise_scale,
    sigma_range,
)
from sfumato.families.diffusion.trajectory.quartiles import quartiles_of_normal

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided


PIXEL_P_MEAN, PIXEL_P_STD = -1.2, 1.2
LATENT_P_MEAN, LATENT_P_STD = -0.4, 1.0
"""Of EDM2 (Karras et al. 2024, `train_edm2.py`), whose latents have a standard deviation of PIXEL_STD."""


class EDMConfig(ObjectiveConfig, GuidableObjective, NoiseDraws):
    """Continuous noise levels; the network is preconditioned at each."""

    Sampling: ClassVar[type[SamplingBase]] = EDMSampling
    output_units: ClassVar[tuple[str, ...]] = ("sigma_data",)
    kind: Literal["edm"] = Field("edm", description="Selects this objective.")
    sigma_data: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the data in [-1, 1], or of the scaled latents; null means "
        f"{PIXEL_STD} for a model of pixels and {LATENT_STD} for one of latents.",
    )
    p_mean: Annotated[float | None, Before(2, PIXEL_P_MEAN)] = Field(
        None,
        description=f"Mean of ln sigma in training; null means {PIXEL_P_MEAN} for pixels (Karras et al. "
        f"2022), and on latents {LATENT_P_MEAN} + ln(sigma_data / {PIXEL_STD}) (Karras et al. 2024).",
    )
    p_std: Annotated[float | None, Before(2, PIXEL_P_STD)] = Field(
        None,
        gt=0,
        description=f"Standard deviation of ln sigma in training; null means {PIXEL_P_STD} for pixels, and "
        f"{LATENT_P_STD:g} on latents.",
    )

    uncertainty: bool = Field(
        False,
        description="Weight noise levels by the error that the network expects there (Karras et al. 2024, "
        "EDM2, eq. 21): with network edm2.",
    )
    augment: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability of each of the changes of images that the network is told of (Karras et "
        "al. 2022, app. F.2; 0.12 on CIFAR-10): with network ddpmpp. 0 changes none, and mirrors none.",
    )

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """Uncertainty of a network that tells none, changes of images of which one is not told."""
        kind, found = own.network.kind, []
        if self.uncertainty and not own.network.tells_uncertainty:
            found.append(f"model.objective.uncertainty: {kind} tells none; use network.kind=edm2")
        if self.augment and not own.network.takes_changes:
            found.append(f"model.objective.augment: {kind} is not told of changes; use network.kind=ddpmpp")
        if self.augment and own.first_stage is not None:
            found.append("model.objective.augment: changes pixels, not latents; leave it out")
        return found

    @classmethod
    def tiny(cls) -> Self:
        """The defaults: they cost nothing."""
        return cls()

    @classmethod
    def tiny_sampling(cls) -> EDMSampling:
        """3 steps that add noise again, and a likelihood."""
        return EDMSampling(steps=3, churn=1.0, likelihood_steps=3)

    def build(self, *, latents: bool = False) -> EDM:
        """The objective of a model of pixels, or of latents."""
        return EDM(self, latents=latents)


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """The coefficients of table 1 at noise levels `sigma`, of its shape."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor

    @classmethod
    def at(cls, sigma: Tensor, sigma_data: float) -> Preconditioning:
        """For sigma > 0."""
        total = sigma.square() + sigma_data**2
        return cls(
            skip=sigma_data**2 / total,
            out=sigma * sigma_data / total.sqrt(),
            in_=total.rsqrt(),
            noise=sigma.log() / 4,
        )


class EDM(BoundedObjective, DenoisingObjective):
    """The weighted denoising loss, and the paper's samplers."""

    phase = "denoise"

    def __init__(self, config: EDMConfig, *, latents: bool = False) -> None:
        self._config = config
        self.uncertain = config.uncertainty
        self.changes = CHANGES if config.augment else 0
        self._sigma_data = data_std(config.sigma_data, latents=latents)
        self._scale = noise_scale(self._sigma_data, latents=latents)
        mean, std = (LATENT_P_MEAN, LATENT_P_STD) if latents else (PIXEL_P_MEAN, PIXEL_P_STD)
        self._p_mean = mean + math.log(self._scale) if config.p_mean is None else config.p_mean
        self._p_std = std if config.p_std is None else config.p_std

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Weighted squared error of the denoised image, mean over pixels; about 1 before training."""
        y_BCHW, more = batch["image"], dict[str, Tensor]()
        if self._config.augment:
            y_BCHW, more["changes"] = changed(y_BCHW, rng, self._config.augment)
        z_B = self._config.normal(rng)
        sigma_B111 = (self._p_mean + self._p_std * z_B).exp().view(-1, 1, 1, 1)
        x_BCHW = y_BCHW + sigma_B111 * rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        c = Preconditioning.at(sigma_B111, self._sigma_data)
        target_BCHW = (y_BCHW - c.skip * x_BCHW) / c.out
        found = nets["network"](c.in_ * x_BCHW, c.noise.flatten(), given, return_dict=False, **more)
        error_B = (found[0].float() - target_BCHW).square().mean(dim=(1, 2, 3))
        metrics = quartiles_of_normal(error_B.detach(), z_B)
        if not self._config.uncertainty:
            return LossOut(error_B, metrics)
        return LossOut(error_B / found[1].exp() + found[1], {**metrics, "error": error_B.detach()})

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: EDMSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """Algorithm 1 of the paper, or 2 if the options set churn."""

        def slope(x_NCHW: Tensor, sigma: float) -> Tensor:
            return (x_NCHW - self.denoise(network, x_NCHW, sigma, clip=clip)) / sigma

        sigmas = options.sigmas(self._scale)
        start_NCHW = noise_NCHW if first else noise_NCHW * sigmas[0]
        return integrate(options.sampler, slope, start_NCHW, sigmas[first:], before=churn(options, rng))

    def noise_levels(self, options: EDMSampling) -> list[Level]:
        """Noise of each sigma on the image itself."""
        return [Level(1.0, sigma, sigma) for sigma in options.sigmas(self._scale)]

    def image(self, network: Guided, x_NCHW: Tensor, level: Level) -> Tensor:
        """D(x; sigma)."""
        return self.denoise(network, x_NCHW, level.noise, clip=False)

    def image_in(self, output: Output, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """By the preconditioned network."""
        c = Preconditioning.at(sigma_B.view(-1, 1, 1, 1), self._sigma_data)
        return c.skip * x_BCHW + c.out * output(c.in_ * x_BCHW, c.noise.flatten())

    def highest(self) -> float:
        """None: levels are log-normal."""
        return math.inf

    def bits_per_dim(self, network: Guided, x0_BCHW: Tensor, options: EDMSampling, rng: Rng) -> Tensor:
        """The likelihood of the flow between the options' noise levels, [B]; see `flow_likelihood`."""
        assert options.likelihood_steps is not None, "asked for"

        def image(x_BCHW: Tensor, sigma: float) -> Tensor:
            return self.denoise(network, x_BCHW, sigma, clip=False)

        low, high = sigma_range(options.sigma_min, options.sigma_max)
        sigmas = even_levels(options.likelihood_steps, low, high)
        return flow_bits(image, x0_BCHW, sigmas, rng)

    def denoise(self, network: Guided, x_NCHW: Tensor, sigma: float, *, clip: bool) -> Tensor:
        """D(x; sigma), [N, C, H, W]."""
        c = Preconditioning.at(torch.tensor(sigma, device=x_NCHW.device), self._sigma_data)
        denoised_NCHW = c.skip * x_NCHW + c.out * network(c.in_ * x_NCHW, c.noise, sigma)
        return denoised_NCHW.clamp(-1, 1) if clip else denoised_NCHW
