"""Distribution matching distillation: a one-step generator whose noisy images score as real ones do (DMD2).

Yin et al. 2024a, eq. 7, 8; Yin et al. 2024b, sec. 4. Two denoisers judge a generated image x with fresh noise
of level sigma: the frozen teacher D, and a copy D' that keeps learning the generator's own images. The
generator moves each image along their difference,

    x = G(z),    g = (D'(x + sigma n) - D(x + sigma n)) / mean |x - D(x + sigma n)|
    L = || x - sg(x - g) ||^2 / 2

The copy has a head that tells noisy generated images from noisy real ones (sec. 4.3), which corrects what the
teacher got wrong, and trains `score_updates` times for each update of the generator (sec. 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets, NetSpec, Phase, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.schedules import LearningRate
from sfumato.families.diffusion.distillation.jumps import JumpingStudent, JumpSampling
from sfumato.families.diffusion.distillation.middle import Middle
from sfumato.families.diffusion.distillation.teacher import NAME, GuidedTeacher, TaughtConfig
from sfumato.families.diffusion.objectives import Model, SamplingBase
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Given

SCORE = "score"


class Dmd2Config(TaughtConfig, GuidedTeacher, NoiseDraws):
    """A generator of one step, between two denoisers and a discriminator."""

    Sampling: ClassVar[type[SamplingBase]] = JumpSampling
    kind: Literal["dmd2"] = Field("dmd2", description="Selects this objective.")
    score_updates: int = Field(5, ge=1, description="Updates of the copy for each of the generator.")
    adversarial: float = Field(
        3e-3, ge=0, description="Weight of the head's verdict in the generator's loss; 0 leaves the head out."
    )
    head_weight: float = Field(1e-2, gt=0, description="Weight of the head's loss in the copy's.")
    p_mean: float = Field(-1.2, description="Mean of ln sigma.")
    p_std: float = Field(1.2, gt=0, description="Standard deviation of ln sigma.")
    score_optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-4)), description="How the copy is trained."
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two updates of the copy."""
        return cls(teacher=cls.tiny_teacher(), score_updates=2)

    def build(self, *, latents: bool = False) -> Dmd2:
        """The objective of a model of pixels, or of latents."""
        return Dmd2(self, latents=latents)

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """Networks without a middle, which the head reads."""
        found = super().problems(own, data)
        if not found and self.adversarial and own.network.middle() is None:
            kind = own.network.kind
            found.append(f"model.objective.adversarial: {kind} has no layer for a head to read; set it to 0")
        return found


class Dmd2(JumpingStudent):
    """Two phases: the copy learns the generator's images, the generator moves towards the teacher's."""

    phase = "generate"
    float32 = True  # it takes differences of two denoisers that start equal

    def __init__(self, config: Dmd2Config, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config
        self._middle = self.network_config.middle() if config.adversarial else None

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, and the copy with its head."""
        weights = self.frozen.weights
        return {
            NAME: self.frozen,
            SCORE: Trainable(
                build=partial(Scored, self.frozen.build, self._middle),
                optimizer=self._config.score_optimizer,
                weights=None if weights is None else replace(weights, into="network"),
            ),
        }

    def further_phases(self, given: Conditioning) -> Sequence[Phase]:
        """The copy's."""
        updates = self._config.score_updates

        def loss(nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
            return self._score_loss(nets, batch, given, rng)

        return (Phase(name="score", trains=SCORE, loss=loss, repeats=updates, float32=True),)

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Half the squared distance to the image moved along g, and the head's verdict."""
        given = labels.draw(batch, rng)
        image_BCHW = self._generate(nets, batch, given, rng)
        sigma_B = self._levels(rng)
        noisy_BCHW = image_BCHW + sigma_B.view(-1, 1, 1, 1) * rng.normal(*image_BCHW.shape[1:])
        with torch.no_grad():
            real_BCHW = self.taught(nets, noisy_BCHW, sigma_B, given)
            fake_BCHW, _ = self._judge(nets, noisy_BCHW, sigma_B, given)
            scale_B = (image_BCHW - real_BCHW).abs().flatten(1).mean(dim=1).clamp(min=1e-8)
            g_BCHW = (fake_BCHW - real_BCHW) / scale_B.view(-1, 1, 1, 1)
        loss_B = 0.5 * (image_BCHW - (image_BCHW - g_BCHW).detach()).square().flatten(1).mean(dim=1)
        metrics = {"shift": g_BCHW.abs().flatten(1).mean(dim=1)}
        if self._config.adversarial:
            _, verdict_B = self._judge(nets, noisy_BCHW, sigma_B, given)
            metrics["fake"] = verdict_B.detach()
            loss_B = loss_B + self._config.adversarial * F.softplus(-verdict_B)
        return LossOut(loss_B, metrics)

    def _score_loss(self, nets: Nets, batch: Batch, labels: Conditioning, rng: Rng) -> LossOut:
        """EDM's denoising loss on generated images, and the head's on generated and real ones."""
        given = labels.draw(batch, rng)
        with torch.no_grad():
            image_BCHW = self._generate(nets, batch, given, rng)
        sigma_B = self._levels(rng)
        noise_BCHW = sigma_B.view(-1, 1, 1, 1) * rng.normal(*image_BCHW.shape[1:])
        found_BCHW, fake_B = self._judge(nets, image_BCHW + noise_BCHW, sigma_B, given)
        data = self.sigma_data
        weight_B = (sigma_B.square() + data**2) / (sigma_B * data).square()
        loss_B = weight_B * (found_BCHW - image_BCHW).square().flatten(1).mean(dim=1)
        metrics = {"denoising": loss_B.detach()}
        if self._config.adversarial:
            _, real_B = self._judge(nets, batch["image"] + noise_BCHW, sigma_B, given)
            metrics["accuracy"] = ((fake_B < 0).float() + (real_B > 0).float()).detach() / 2
            loss_B = loss_B + self._config.head_weight * (F.softplus(fake_B) + F.softplus(-real_B))
        return LossOut(loss_B, metrics)

    def _generate(self, nets: Nets, batch: Batch, given: Given | None, rng: Rng) -> Tensor:
        """Images of fresh noise at the largest level."""
        z_BCHW = rng.normal(*batch["image"].shape[1:])
        sigma_B = torch.full((len(z_BCHW),), self.most, device=z_BCHW.device)
        return self.denoised(nets["network"], self.most * z_BCHW, sigma_B, given)

    def _levels(self, rng: Rng) -> Tensor:
        """Noise levels, [B]."""
        config = self._config
        return (config.p_mean + config.p_std * config.normal(rng)).exp().clamp(self.least, self.most)

    def _judge(
        self, nets: Nets, noisy_BCHW: Tensor, sigma_B: Tensor, given: Given | None
    ) -> tuple[Tensor, Tensor]:
        """The copy's image [B, C, H, W], and its head's logit that an image is real [B]; 0 without a head."""
        verdicts: list[Tensor] = []

        def output(x: Tensor, t: Tensor) -> Tensor:
            raw_BCHW, verdict_B = nets[SCORE](x, t, given)
            verdicts.append(verdict_B.float())
            return raw_BCHW.float()  # type: ignore[no-any-return]

        return self.denoiser.image_in(output, noisy_BCHW, sigma_B), verdicts[0]


class Scored(Middle):
    """A denoiser, and a head on its middle layer that tells real images from generated ones."""

    def __init__(self, build: Callable[[], nn.Module], middle: tuple[str, int] | None) -> None:
        super().__init__(build, middle)
        self.head = None
        if middle is not None:
            channels = middle[1]
            self.head = nn.Sequential(nn.LayerNorm(channels), nn.SiLU(), nn.Linear(channels, 1))

    def forward(
        self, x_BCHW: Tensor, t_B: Tensor, given: Given | None = None, return_dict: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The network's output, and the head's logit [B]."""
        output_BCHW, positions_BTC = super().forward(x_BCHW, t_B, given)
        if self.head is None:
            return output_BCHW, output_BCHW.new_zeros(len(x_BCHW))
        return output_BCHW, self.head(positions_BTC).mean(dim=(1, 2))


COMPONENT = Dmd2Config
