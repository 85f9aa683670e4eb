"""Easy consistency tuning: a consistency model from a trained diffusion model (Geng et al. 2024).

A denoiser is a consistency model that only its own noise level has taught. Tuning brings its answers at two
levels t > r of one noisy image together (eq. 12), first far apart (r = 0, which is denoising), then nearer:

    L = E  1/(t - r)  d( f(x + t z, t),  sg f(x + r z, r) ),    f(x, 0) = x
    r = t max(0, 1 - n(t) / q^(s + 1)),    n(t) = 1 + k sigmoid(-b t)

with s the stage, q = 2, k = 8, b = 1, t log-normal with P_mean -1.1 and P_std 2, and one dropout mask for
both answers (`training/loss.py` of the authors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, repeatable
from sfumato.families.diffusion.distillation.distances import pseudo_huber
from sfumato.families.diffusion.distillation.jumps import JumpingStudent, JumpSampling
from sfumato.families.diffusion.distillation.teacher import TaughtConfig
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.quartiles import quartiles_of_normal

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning


class EctConfig(TaughtConfig, NoiseDraws):
    """Consistency tuning of a trained diffusion model."""

    Sampling: ClassVar[type[SamplingBase]] = JumpSampling
    kind: Literal["ect"] = Field("ect", description="Selects this objective.")
    stages: int = Field(
        8, ge=1, description="Stages of equal length; in each the two noise levels come nearer by `shrink`."
    )
    shrink: float = Field(2.0, gt=1, description="q; the authors use 2 for long and 4 for short training.")
    k: float = Field(8.0, ge=0, description="How much farther apart low noise levels are.")
    b: float = Field(1.0, gt=0, description="How fast that fades with noise.")
    p_mean: float = Field(-1.1, description="Mean of ln t.")
    p_std: float = Field(2.0, gt=0, description="Standard deviation of ln t.")
    huber: float = Field(
        0.0, ge=0, description="c of the pseudo-Huber distance; 0 is the plain distance, as for CIFAR-10."
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two stages."""
        return cls(teacher=cls.tiny_teacher(), stages=2)

    def build(self, *, latents: bool = False) -> Ect:
        """The objective of a model of pixels, or of latents."""
        return Ect(self, latents=latents)

    def lower(self, t_B: Tensor, progress: Progress) -> Tensor:
        """r for every t, [B]."""
        stage = min(self.stages - 1, self.stages * progress.images // max(1, progress.total_images))
        near_B = 1 + self.k * torch.sigmoid(-self.b * t_B)
        return t_B * (1 - near_B / self.shrink ** (stage + 1)).clamp(min=0)


class Ect(JumpingStudent):
    """The tuning loss; the teacher gives the initial weights and is not run."""

    phase = "tune"
    float32 = True  # it takes differences of nearly equal answers

    def __init__(self, config: EctConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Weighted distance of the answers at t and r."""
        y_BCHW, config = batch["image"], self._config
        z_B = config.normal(rng)
        t_B = (config.p_mean + config.p_std * z_B).exp().clamp(self.least, self.most)
        r_B = config.lower(t_B, progress)
        noise_BCHW = rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)

        def answer(sigma_B: Tensor) -> Tensor:
            x_BCHW = y_BCHW + sigma_B.view(-1, 1, 1, 1) * noise_BCHW
            return self.denoised(nets["network"], x_BCHW, sigma_B, given)

        with torch.no_grad(), repeatable(y_BCHW.device):
            lower_BCHW = answer(torch.where(r_B > 0, r_B, self.least))
        wanted_BCHW = torch.where(r_B.view(-1, 1, 1, 1) > 0, lower_BCHW, y_BCHW)
        distance_B = pseudo_huber(answer(t_B), wanted_BCHW, config.huber)
        loss_B = distance_B / (t_B - r_B)
        return LossOut(loss_B, {"distance": distance_B.detach(), **quartiles_of_normal(loss_B.detach(), z_B)})


COMPONENT = EctConfig
