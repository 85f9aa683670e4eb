"""Progressive distillation: one step of the student for two of its teacher, again and again (Salimans & Ho
2022, algorithm 2).

Round k has a student of N / 2^(k + 1) steps on the levels of its teacher's N / 2^k. Its target is the image
x~ towards which one DDIM step from s to s'' ends where two of the teacher's, over s', do:

    z'' = DDIM(DDIM(z; s -> s'); s' -> s''),    x~ = (z'' - (s''/s) z) / (1 - s''/s)
    L = E  max(1/s^2, 1) || x~ - D(z; s) ||^2                       (truncated SNR weighting, sec. 4)

The first teacher is the given run, perhaps guided; each later one is the student at the end of a round.
Levels are those of Karras et al. 2022, eq. 5, with 0 at the end; the paper's are evenly spaced on the cosine
schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.distillation.teacher import NAME, GuidedTeacher, Taught, TaughtConfig
from sfumato.families.diffusion.objectives import SamplingBase
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.noise_levels import karras_sigmas

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided

LAST = "last_round"


class ProgressiveSampling(SamplingBase):
    """How images are drawn: along the levels of the last round."""

    steps: int | None = Field(
        None,
        ge=1,
        description="Steps from noise to image; null means as many as the last round has, the least. More "
        "must be that times a power of two.",
    )

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """Steps that no round had."""
        assert isinstance(objective, ProgressiveDistillationConfig)
        known = [objective.first >> i for i in range(1, objective.rounds + 1)]
        if self.steps in (None, *known):
            return []
        return [
            f"model.sampling.steps: got {self.steps}; the rounds of objective.first and objective.last have "
            + ", ".join(map(str, known))
        ]


class ProgressiveDistillationConfig(TaughtConfig, GuidedTeacher, NoiseDraws):
    """Halves the number of steps round by round."""

    Sampling: ClassVar[type[SamplingBase]] = ProgressiveSampling
    kind: Literal["progressive_distillation"] = Field(
        "progressive_distillation", description="Selects this objective."
    )
    first: int = Field(16, ge=2, description="N, DDIM steps of the teacher in the first round.")
    last: int = Field(
        1, ge=1, description="Steps of the student in the last round; `first` over a power of 2."
    )
    rho: float = Field(7.0, ge=1, description="Spacing of the levels (Karras et al. 2022, eq. 5).")

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.start != "teacher":
            raise ValueError("start: the rounds halve the steps of the teacher itself; leave it at teacher")
        steps = self.first
        while steps > self.last and steps % 2 == 0:
            steps //= 2
        if steps != self.last or self.last == self.first:
            raise ValueError(
                f"last: {self.last} is not first={self.first} halved some times; use {self.first // 2}, "
                f"or a first of {self.last * 4}"
            )
        return self

    @property
    def rounds(self) -> int:
        """How often the steps are halved."""
        return (self.first // self.last).bit_length() - 1

    def round(self, progress: Progress) -> int:
        """The round, from 0, of the step that starts at `progress`; all are equally long."""
        return min(self.rounds - 1, self.rounds * progress.images // max(1, progress.total_images))

    @classmethod
    def tiny(cls) -> Self:
        """From 4 steps to 1."""
        return cls(teacher=cls.tiny_teacher(), first=4)

    def build(self, *, latents: bool = False) -> ProgressiveDistillation:
        """The objective of a model of pixels, or of latents."""
        return ProgressiveDistillation(self, latents=latents)


class ProgressiveDistillation(Taught):
    """The loss of one round after the other, with copies of the student as teachers."""

    phase = "distil"
    float32 = True  # the last steps differ by little

    def __init__(self, config: ProgressiveDistillationConfig, *, latents: bool = False) -> None:
        super().__init__(config, latents=latents)
        self._config = config

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher, and the student at the end of the round before: an average that is replaced there."""

        def decay(progress: Progress) -> float:
            """0, which copies the student, after the last step of a round."""
            before = Progress(
                step=progress.step,
                images=max(0, progress.images - progress.batch),
                total_images=progress.total_images,
                batch=progress.batch,
            )
            return 1.0 if self._config.round(before) == self._config.round(progress) else 0.0

        return {NAME: self.frozen, LAST: EmaOf(source="network", decay=decay)}

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Weighted squared error of the image that two steps of the teacher lead towards."""
        y_BCHW, round_ = batch["image"], self._config.round(progress)
        levels_N = self._levels(self._config.first >> round_).to(y_BCHW.device)
        index_B = 2 * self._config.integers(rng, (len(levels_N) - 1) // 2)
        start_B, middle_B, end_B = (levels_N[index_B + i] for i in range(3))
        z_BCHW = y_BCHW + start_B.view(-1, 1, 1, 1) * rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)

        def teacher(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            if round_ == 0:
                return self.taught(nets, x_BCHW, sigma_B, given)
            return self.denoised(nets[LAST], x_BCHW, sigma_B, given)

        with torch.no_grad():
            wanted_BCHW = two_steps(teacher, z_BCHW, start_B, middle_B, end_B)
        error_BCHW = wanted_BCHW - self.denoised(nets["network"], z_BCHW, start_B, given)
        weight_B = start_B.square().reciprocal().clamp(min=1)
        loss_B = weight_B * error_BCHW.square().flatten(1).mean(dim=1)
        steps = torch.full((), float(self._config.first >> (round_ + 1)), device=loss_B.device)
        return LossOut(loss_B, {"student_steps": steps})

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: ProgressiveSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """DDIM along the levels of a round."""
        levels: list[float] = self._levels(options.steps or self._config.last).tolist()
        x_NCHW = noise_NCHW * levels[0]
        for start, end in pairwise(levels):
            sigma_N = torch.full((len(x_NCHW),), start, device=x_NCHW.device)
            image_NCHW = self.denoiser.image_in(network, x_NCHW, sigma_N)
            if clip:
                image_NCHW = image_NCHW.clamp(-1, 1)
            x_NCHW = image_NCHW + (end / start) * (x_NCHW - image_NCHW)
        return x_NCHW

    def _levels(self, steps: int) -> Tensor:
        """`steps` + 1 falling noise levels, 0 at the end: every so many of those of the first round."""
        config = self._config
        fine = karras_sigmas(config.first, sigma_min=self.least, sigma_max=self.most, rho=config.rho)
        return torch.tensor([*fine, 0.0], dtype=torch.float32)[:: config.first // steps]


def two_steps(
    denoise: Callable[[Tensor, Tensor], Tensor],
    z_BCHW: Tensor,
    start_B: Tensor,
    middle_B: Tensor,
    end_B: Tensor,
) -> Tensor:
    """x~, [B, C, H, W]: one DDIM step towards it ends where two of `denoise` do."""
    first = (middle_B / start_B).view(-1, 1, 1, 1)
    second = (end_B / middle_B).view(-1, 1, 1, 1)
    both = (end_B / start_B).view(-1, 1, 1, 1)
    image_BCHW = denoise(z_BCHW, start_B)
    mid_BCHW = image_BCHW + first * (z_BCHW - image_BCHW)
    later_BCHW = denoise(mid_BCHW, middle_B)
    end_BCHW = later_BCHW + second * (mid_BCHW - later_BCHW)
    return (end_BCHW - both * z_BCHW) / (1 - both)


COMPONENT = ProgressiveDistillationConfig
