"""Adversarial distillation: few steps, judged by a discriminator on the teacher's own features (ADD, LADD).

Sauer et al. 2023, eq. 1 to 4; Sauer et al. 2024, sec. 3. The student answers a noisy image with an image x.
The frozen teacher looks at x, and at a real image y, with fresh noise of level sigma; a head on the layer in
its middle tells the two apart at every position, by the hinge loss:

    L_head = max(0, 1 - h(y + sigma n)) + max(0, 1 + h(x + sigma n'))
    L      = -h(x + sigma n') + distillation / sqrt(1 + sigma^2) || x - sg D(x + sigma n') ||^2

LADD has the first term alone; ADD, which takes the head's features from another network, weights the second
by 2.5. The student sees the noise levels of its own sampling in `steps` steps, each with the same
probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import Frozen, LossOut, Nets, NetSpec, Phase, Trainable
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

HEAD = "head"


class AdversarialDistillationConfig(TaughtConfig, GuidedTeacher, NoiseDraws):
    """A student of few steps, between its teacher and a discriminator."""

    Sampling: ClassVar[type[SamplingBase]] = JumpSampling
    kind: Literal["adversarial_distillation"] = Field(
        "adversarial_distillation", description="Selects this objective."
    )
    steps: int = Field(1, ge=1, description="Steps of sampling whose noise levels the student learns.")
    distillation: float = Field(
        0.0, ge=0, description="Weight of the distance to the teacher's answer; 0 is LADD, ADD has 2.5."
    )
    p_mean: float = Field(-0.8, description="Mean of ln sigma at which the teacher looks.")
    p_std: float = Field(1.6, gt=0, description="Standard deviation of ln sigma.")
    head_optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3)), description="How the discriminator's head is trained."
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two steps, and both terms."""
        return cls(teacher=cls.tiny_teacher(), steps=2, distillation=1.0)

    def build(self, *, latents: bool = False) -> AdversarialDistillation:
        """The objective of a model of pixels, or of latents."""
        return AdversarialDistillation(self, latents=latents)

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """Networks without a middle, which the head reads."""
        found = super().problems(own, data)
        if not found and own.network.middle() is None:
            kind = own.network.kind
            found.append(
                f"model.network: {kind} has no layer for a discriminator to read; use unet, ddpmpp or dit"
            )
        return found


class AdversarialDistillation(JumpingStudent):
    """Two phases: the head learns to tell images apart, the student to be taken for real."""

    phase = "generate"

    def __init__(self, config: AdversarialDistillationConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config
        middle = self.network_config.middle()
        assert middle is not None, "checked among the problems"
        self._middle = middle
        self._starts_at = [self.most, *JumpSampling(steps=config.steps).later(self.least, self.most)]

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, whose middle is read, and the head."""
        weights = self.frozen.weights
        return {
            NAME: Frozen(
                build=partial(Middle, self.frozen.build, self._middle),
                weights=None if weights is None else replace(weights, into="network"),
            ),
            HEAD: Trainable(build=partial(Head, self._middle[1]), optimizer=self._config.head_optimizer),
        }

    def further_phases(self, given: Conditioning) -> Sequence[Phase]:
        """The head's."""

        def loss(nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
            return self._head_loss(nets, batch, given, rng)

        return (Phase(name="judge", trains=HEAD, loss=loss),)

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """What the head says of the student's images, and their distance to the teacher's."""
        given = labels.draw(batch, rng)
        image_BCHW = self._answers(nets, batch, given, rng)
        noisy_BCHW, sigma_B = self._noisy(image_BCHW, rng)
        loss_B = -self._verdict(nets, noisy_BCHW, sigma_B, given).mean(dim=1)
        metrics = {"fake": -loss_B.detach()}
        if self._config.distillation:
            with torch.no_grad():
                wanted_BCHW = self.taught(nets, noisy_BCHW, sigma_B, given)
            distance_B = (image_BCHW - wanted_BCHW).square().flatten(1).mean(dim=1)
            metrics["distance"] = distance_B.detach()
            loss_B = loss_B + self._config.distillation * (1 + sigma_B.square()).rsqrt() * distance_B
        return LossOut(loss_B, metrics)

    def _head_loss(self, nets: Nets, batch: Batch, labels: Conditioning, rng: Rng) -> LossOut:
        """The hinge loss on real and generated images."""
        given = labels.draw(batch, rng)
        with torch.no_grad():
            image_BCHW = self._answers(nets, batch, given, rng)
        fake_BT = self._verdict(nets, *self._noisy(image_BCHW, rng), given)
        real_BT = self._verdict(nets, *self._noisy(batch["image"], rng), given)
        accuracy_B = ((fake_BT < 0).float() + (real_BT > 0).float()).mean(dim=1) / 2
        loss_B = (F.relu(1 - real_BT) + F.relu(1 + fake_BT)).mean(dim=1)
        return LossOut(loss_B, {"accuracy": accuracy_B})

    def _answers(self, nets: Nets, batch: Batch, given: Given | None, rng: Rng) -> Tensor:
        """The student's images of noisy real ones, at one of its noise levels each."""
        y_BCHW = batch["image"]
        levels = torch.tensor(self._starts_at, device=y_BCHW.device)
        sigma_B = levels[rng.integers(len(levels))]
        noise_BCHW = rng.normal(*y_BCHW.shape[1:])
        noisy_BCHW = y_BCHW + sigma_B.view(-1, 1, 1, 1) * noise_BCHW
        # At the largest level the sampler begins with noise alone.
        begins_B111 = (sigma_B == self.most).view(-1, 1, 1, 1)
        noisy_BCHW = torch.where(begins_B111, self.most * noise_BCHW, noisy_BCHW)
        return self.denoised(nets["network"], noisy_BCHW, sigma_B, given)

    def _noisy(self, image_BCHW: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Images as the teacher looks at them, and their noise levels [B]."""
        config = self._config
        sigma_B = (config.p_mean + config.p_std * config.normal(rng)).exp().clamp(self.least, self.most)
        return image_BCHW + sigma_B.view(-1, 1, 1, 1) * rng.normal(*image_BCHW.shape[1:]), sigma_B

    def _verdict(self, nets: Nets, noisy_BCHW: Tensor, sigma_B: Tensor, given: Given | None) -> Tensor:
        """The head's logit that an image is real, at every position [B, T]."""
        read: list[Tensor] = []

        def output(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
            raw_BCHW, positions_BTC = nets[NAME](x_BCHW, t_B, given)
            read.append(positions_BTC)
            return raw_BCHW.float()  # type: ignore[no-any-return]

        self.denoiser.image_in(output, noisy_BCHW, sigma_B)
        verdict_BT: Tensor = nets[HEAD](read[0])
        return verdict_BT.float()


class Head(nn.Module):
    """A small network on positions [B, T, C], one logit for each [B, T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )

    def forward(self, positions_BTC: Tensor) -> Tensor:
        """[B, T]."""
        verdict_BT: Tensor = self.layers(positions_BTC).squeeze(2)
        return verdict_BT


COMPONENT = AdversarialDistillationConfig
