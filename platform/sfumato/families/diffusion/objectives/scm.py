"""Simplified, stable, scalable consistency models in continuous time (sCM; Lu & Song 2025).

TrigFlow has x_t = cos(t) y + sin(t) z with z ~ N(0, sigma_data^2) and t in [0, pi/2]. x_t / cos t has the
noise level sigma = sigma_data tan t, so that any denoiser D gives the paper's F (eq. 5):

    f(x_t, t) = cos(t) x_t - sin(t) sigma_data F = D(x_t / cos t; sigma_data tan t)

Along dx/dt the answer of a consistency function does not change. The tangent of algorithm 1 and its loss,
with F- without gradient and r rising from 0 to 1 over `warmup_images`,

    g = -cos^2(t) (sigma_data F- - dx/dt) - r cos t sin t (x_t + sigma_data dF-/dt),    g <- g / (||g|| + c)
    L = || F - F- - g ||^2 / d

The path dx/dt is that of the teacher (distillation: `path: teacher`) or cos(t) z - sin(t) y of the data
(training: `path: data`). The paper's weight that is learnt over t is left out: the tangent is normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.diffusion.distillation.jumps import JumpingStudent, JumpSampling
from sfumato.families.diffusion.distillation.tangents import tangent
from sfumato.families.diffusion.distillation.teacher import NAME, GuidedTeacher, TaughtConfig
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Given


class ScmConfig(TaughtConfig, GuidedTeacher, NoiseDraws):
    """A consistency model of continuous time, from a trained diffusion model."""

    Sampling: ClassVar[type[SamplingBase]] = JumpSampling
    kind: Literal["scm"] = Field("scm", description="Selects this objective.")
    path: Literal["teacher", "data"] = Field(
        "teacher", description="What the answer is constant along: the teacher's path, or that of an image."
    )
    p_mean: float = Field(-1.0, description="Mean of ln(sigma_data tan t).")
    p_std: float = Field(1.4, gt=0, description="Standard deviation of ln(sigma_data tan t).")
    normalizer: float = Field(0.1, gt=0, description="c, added to the norm of the tangent.")
    warmup_images: int = Field(
        0, ge=0, description="Images over which r, the weight of the tangent's unstable part, rises to 1."
    )

    @model_validator(mode="after")
    def _guidance_has_effect(self) -> Self:
        if self.path == "data" and self.guidance != 1:
            raise ValueError("guidance: the teacher is not run with path=data; leave it out")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """From the first image on, half of the tangent."""
        return cls(teacher=cls.tiny_teacher(), warmup_images=128)

    def build(self, *, latents: bool = False) -> Scm:
        """The objective of a model of pixels, or of latents."""
        return Scm(self, latents=latents)


class Scm(JumpingStudent):
    """The normalised tangent, taken in forward mode."""

    phase = "distil"
    float32 = True  # the tangent is a difference of nearly equal terms

    def __init__(self, config: ScmConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, if its path is followed."""
        return {NAME: self.frozen} if self._config.path == "teacher" else {}

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Squared distance to the answer moved along the tangent, mean over pixels."""
        config, y_BCHW = self._config, batch["image"]
        sigma_B = (config.p_mean + config.p_std * config.normal(rng)).exp().clamp(self.least, self.most)
        t_B = torch.atan(sigma_B / self.sigma_data)
        cos, sin = t_B.cos().view(-1, 1, 1, 1), t_B.sin().view(-1, 1, 1, 1)
        z_BCHW = self.sigma_data * rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        x_BCHW = cos * y_BCHW + sin * z_BCHW
        path_BCHW = cos * z_BCHW - sin * y_BCHW
        if config.path == "teacher":
            with torch.no_grad():
                image_BCHW = self.taught(nets, x_BCHW / cos, sigma_B, given)
                path_BCHW = (cos * x_BCHW - image_BCHW) / sin

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.velocity(nets["network"], x, t, given)

        # Scaled by cos(t) sin(t), so that the derivative stays small near both ends (sec. 4.1).
        scale = cos * sin
        now_BCHW, change_BCHW = tangent(velocity, (x_BCHW, t_B), (scale * path_BCHW, scale.flatten()))
        r = min(1.0, progress.images / config.warmup_images) if config.warmup_images else 1.0
        g_BCHW = -(cos**2) * (now_BCHW - path_BCHW) - r * (scale * x_BCHW + change_BCHW)
        norm_B = g_BCHW.flatten(1).norm(dim=1)
        g_BCHW = g_BCHW / (norm_B + config.normalizer).view(-1, 1, 1, 1)
        error_BCHW = (velocity(x_BCHW, t_B) - now_BCHW) / self.sigma_data - g_BCHW
        return LossOut(error_BCHW.square().mean(dim=(1, 2, 3)), {"tangent": norm_B})

    def velocity(self, network: nn.Module, x_BCHW: Tensor, t_B: Tensor, given: Given | None) -> Tensor:
        """sigma_data F(x_t, t), read from the denoiser, [B, C, H, W]."""
        cos, sin = t_B.cos().view(-1, 1, 1, 1), t_B.sin().view(-1, 1, 1, 1)
        image_BCHW = self.denoised(network, x_BCHW / cos, self.sigma_data * t_B.tan(), given)
        return (cos * x_BCHW - image_BCHW) / sin


COMPONENT = ScmConfig
