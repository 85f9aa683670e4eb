"""Consistency distillation: a teacher's path from noise to image in one step (Song et al. 2023, algorithm 2).

On levels s_1 < ... < s_N, an image with the noise of s_{i+1} is led one step along the teacher's path to s_i
(Heun's method, one evaluation of the guided teacher each), and the student's answers at both are to agree:

    x_{i+1} = y + s_{i+1} z,    x_i = Heun(x_{i+1}; s_{i+1} -> s_i)
    L = E  w_i d( f(x_{i+1}, s_{i+1}),  f_target(x_i, s_i) )

The guidance of the teacher is built in, as in latent consistency models (Luo et al. 2023, sec. 4.2, at one
weight instead of many).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, repeatable
from sfumato.families.diffusion.distillation.distances import pseudo_huber, squared
from sfumato.families.diffusion.distillation.jumps import JumpingStudent, JumpSampling
from sfumato.families.diffusion.distillation.teacher import NAME, GuidedTeacher, TaughtConfig
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.noise_levels import karras_sigmas

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Given

TARGET = "target"


class ConsistencyDistillationConfig(TaughtConfig, GuidedTeacher, NoiseDraws):
    """One step that leads where the teacher's path does."""

    Sampling: ClassVar[type[SamplingBase]] = JumpSampling
    kind: Literal["consistency_distillation"] = Field(
        "consistency_distillation", description="Selects this objective."
    )
    levels: int = Field(18, ge=2, description="N, noise levels of the teacher's path.")
    rho: float = Field(7.0, ge=1, description="Their spacing (Karras et al. 2022, eq. 5).")
    distance: Literal["pseudo_huber", "l2"] = Field(
        "pseudo_huber", description="d: sqrt(||a - b||^2 + c^2) - c, or ||a - b||^2."
    )
    weight: Literal["inverse_gap", "one"] = Field(
        "one", description="w_i: one, or one over the distance of the two noise levels."
    )
    target_decay: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Of the average of the student that answers at the lower level; 0 is the student.",
    )

    @classmethod
    def tiny(cls) -> Self:
        """4 levels."""
        return cls(teacher=cls.tiny_teacher(), levels=4)

    def build(self, *, latents: bool = False) -> ConsistencyDistillation:
        """The objective of a model of pixels, or of latents."""
        return ConsistencyDistillation(self, latents=latents)


class ConsistencyDistillation(JumpingStudent):
    """The distillation loss, with the frozen teacher and the averaged target."""

    phase = "distil"
    float32 = True  # it takes differences of nearly equal answers

    def __init__(self, config: ConsistencyDistillationConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config
        falling = karras_sigmas(config.levels, sigma_min=self.least, sigma_max=self.most, rho=config.rho)
        self._sigmas_N = torch.tensor(falling[::-1], dtype=torch.float32)

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, and the target."""
        decay = self._config.target_decay
        return {
            NAME: self.frozen,
            TARGET: EmaOf(source="network", decay=lambda progress: decay, train_mode=True),
        }

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Weighted distance of the answers at both ends of one step of the teacher."""
        y_BCHW, sigmas_N = batch["image"], self._sigmas_N.to(batch["image"].device)
        index_B = self._config.integers(rng, len(sigmas_N) - 1)
        low_B, high_B = sigmas_N[index_B], sigmas_N[index_B + 1]
        x_BCHW = y_BCHW + high_B.view(-1, 1, 1, 1) * rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        with torch.no_grad():
            lower_BCHW = self.step(nets, x_BCHW, high_B, low_B, given)
            with repeatable(y_BCHW.device):
                wanted_BCHW = self.answer(nets, TARGET, lower_BCHW, low_B, given)
        found_BCHW = self.answer(nets, "network", x_BCHW, high_B, given)
        measure = pseudo_huber if self._config.distance == "pseudo_huber" else squared
        distance_B = measure(found_BCHW, wanted_BCHW)
        weighted_B = distance_B / (high_B - low_B) if self._config.weight == "inverse_gap" else distance_B
        return LossOut(weighted_B, {"distance": distance_B.detach()})

    def step(self, nets: Nets, x_BCHW: Tensor, start_B: Tensor, end_B: Tensor, given: Given | None) -> Tensor:
        """One step of Heun's method along the guided teacher's path, [B, C, H, W]."""

        def slope(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            return (x_BCHW - self.taught(nets, x_BCHW, sigma_B, given)) / sigma_B.view(-1, 1, 1, 1)

        length = (end_B - start_B).view(-1, 1, 1, 1)
        first_BCHW = slope(x_BCHW, start_B)
        second_BCHW = slope(x_BCHW + length * first_BCHW, end_B)
        return x_BCHW + length * (first_BCHW + second_BCHW) / 2

    def answer(self, nets: Nets, name: str, x_BCHW: Tensor, sigma_B: Tensor, given: Given | None) -> Tensor:
        """f(x, sigma): the denoiser, moved to the input itself at the least noise level, [B, C, H, W]."""
        return self.answer_of(x_BCHW, sigma_B, self.denoised(nets[name], x_BCHW, sigma_B, given))

    @property
    def remaining(self) -> float:
        """The least of the noise levels."""
        return self.least

    def answer_of(self, x_BCHW: Tensor, sigma_B: Tensor, image_BCHW: Tensor) -> Tensor:
        """x + (1 - least/sigma) (D - x): exactly x at the least level, and D far above it."""
        share = (1 - self.least / sigma_B).view(-1, 1, 1, 1)
        return x_BCHW + share * (image_BCHW - x_BCHW)


COMPONENT = ConsistencyDistillationConfig
