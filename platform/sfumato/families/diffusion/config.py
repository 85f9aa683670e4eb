"""The `model:` part of a recipe for the diffusion family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate

if TYPE_CHECKING:
    from sfumato.families.diffusion.family import DiffusionFamily

DEFAULT_LABEL_DROPOUT = 0.1


class NetworkConfig(Config):
    """Size of the U-Net (diffusers' `UNet2DModel`)."""

    channels: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        description="Channels of each level; every level after the first halves the side.",
    )
    layers_per_block: int = Field(1, ge=1, description="Residual blocks of a level on the way down.")
    attention: tuple[int, ...] = Field(
        (), description="Levels with self-attention in their blocks; 0 is full resolution."
    )
    mid_attention: bool = Field(True, description="Self-attention in the block at the lowest resolution.")
    head_dim: int = Field(32, ge=1, description="Channels of an attention head.")
    norm_groups: int = Field(8, ge=1, description="Groups of every group normalisation.")
    time_conditioning: Literal["add", "scale_shift"] = Field(
        "scale_shift",
        description="How time and class enter a residual block: added (Ho et al. 2020), or as scale and "
        "shift of its normalisation (Dhariwal & Nichol 2021).",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        bad = [width for width in self.channels if width <= 0 or width % self.norm_groups]
        if bad:
            near = max(1, round(bad[0] / self.norm_groups)) * self.norm_groups
            raise ValueError(
                f"channels: {bad[0]} is not a positive multiple of norm_groups={self.norm_groups}; "
                f"the nearest is {near}"
            )
        if self.channels[0] % 2:
            raise ValueError(f"channels: the first level has {self.channels[0]}, which must be even")
        levels = range(len(self.channels))
        if unknown := [level for level in self.attention if level not in levels]:
            raise ValueError(f"attention: there is no level {unknown[0]}; channels give 0 to {levels[-1]}")
        attending = {*self.attention, *([levels[-1]] if self.mid_attention else [])}
        for level in sorted(attending):
            if self.channels[level] % self.head_dim:
                raise ValueError(
                    f"head_dim: {self.head_dim} does not divide the {self.channels[level]} channels of "
                    f"level {level}, which has attention; the nearest that does is "
                    f"{_nearest_divisor(self.channels[level], self.head_dim)}"
                )
        return self


class ObjectiveConfig(Config):
    """What the network learns to predict, and under which noise."""

    prediction: Literal["epsilon", "v"] = Field(
        "v", description="Target: the noise (Ho et al. 2020) or v (Salimans & Ho 2022)."
    )
    schedule: Literal["linear", "cosine"] = Field(
        "cosine",
        description="Noise schedule: linear betas (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021).",
    )
    timesteps: int = Field(1000, ge=2, description="T, the number of noise levels.")
    label_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of labels replaced by the null class in training, which guidance needs; null "
        f"means {DEFAULT_LABEL_DROPOUT} for a class-conditional model.",
    )


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    sampler: Literal["ddpm", "ddim", "dpmsolver++"] = Field(
        "ddim",
        description="ddpm: ancestral (Ho et al. 2020); ddim (Song et al. 2021); dpmsolver++: second-order "
        "multistep (Lu et al. 2022).",
    )
    steps: int = Field(50, ge=1, description="Denoising steps, each one network evaluation (two if guided).")
    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance weight; 1 is the plain conditional model."
    )
    eta: float = Field(0.0, ge=0, le=1, description="Noise of ddim: 0 is deterministic, 1 is like ddpm.")
    clip: bool = Field(True, description="Clip the predicted image to [-1, 1] in every step.")

    @model_validator(mode="after")
    def _eta_has_effect(self) -> Self:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta: {self.eta:g} has no effect on {self.sampler}; set eta=0 or sampler=ddim")
        return self


class DiffusionConfig(FamilyConfig):
    """Denoising diffusion on pixels with a U-Net."""

    family: Literal["diffusion"] = Field("diffusion", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class where the data has classes."
    )
    network: NetworkConfig = Field(NetworkConfig(), description="Size of the U-Net.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="Prediction target and noise schedule.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights, which is what samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditional(self, data: DataSpec) -> bool:
        """Whether the network sees class labels, and sampling takes them."""
        return self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)

    def label_dropout(self, data: DataSpec) -> float:
        """The share of labels that training drops."""
        if not self.conditional(data):
            return 0.0
        chosen = self.objective.label_dropout
        return DEFAULT_LABEL_DROPOUT if chosen is None else chosen

    def build(self, data: DataSpec) -> DiffusionFamily:
        """The family for images of this kind."""
        from sfumato.families.diffusion.family import DiffusionFamily  # loads diffusers

        return DiffusionFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels, 20 noise levels, 3 sampling steps; guided."""
        return cls(
            network=NetworkConfig(channels=(8, 16), head_dim=8, norm_groups=4),
            objective=ObjectiveConfig(timesteps=20),
            sampling=SamplingConfig(steps=3, guidance=1.5),
        )

    def problems(self, data: DataSpec) -> list[str]:
        """What makes this configuration impossible for this data, one line each with the nearest mend."""
        return [
            *_size_problems(self.network, data),
            *self._label_problems(data),
            *self._sampling_problems(),
        ]

    def _label_problems(self, data: DataSpec) -> list[str]:
        if self.condition == "class" and not data.num_classes:
            return ["model.condition: 'class', but the data has no classes; set model.condition=none"]
        found = []
        if not self.conditional(data):
            why = "the data has no classes" if not data.num_classes else "model.condition is 'none'"
            if self.objective.label_dropout:
                found.append(
                    f"model.objective.label_dropout: {self.objective.label_dropout:g}, but {why}; "
                    "leave it out"
                )
            if self.sampling.guidance != 1:
                found.append(f"model.sampling.guidance: {self.sampling.guidance:g}, but {why}; set it to 1")
        elif self.sampling.guidance != 1 and not self.label_dropout(data):
            found.append(
                f"model.sampling.guidance: {self.sampling.guidance:g} needs a model trained with "
                f"model.objective.label_dropout above 0 (such as {DEFAULT_LABEL_DROPOUT}); set guidance to 1"
            )
        return found

    def _sampling_problems(self) -> list[str]:
        if self.sampling.steps <= self.objective.timesteps:
            return []
        most = self.objective.timesteps
        return [f"model.sampling.steps: got {self.sampling.steps}, the most is {most} (objective.timesteps)"]


def _size_problems(network: NetworkConfig, data: DataSpec) -> list[str]:
    factor = 2 ** (len(network.channels) - 1)
    found = []
    for name, side in (("height", data.height), ("width", data.width)):
        if side % factor:
            near = max(1, round(side / factor)) * factor
            found.append(
                f"model.network.channels: {len(network.channels)} levels halve the image "
                f"{len(network.channels) - 1} times, which an image {name} of {side} does not allow; use a "
                f"{name} of {near}, or {_most_levels(side)} level(s)"
            )
    return found


def _most_levels(side: int) -> int:
    """How many levels a side of this length allows: one more than the times that 2 divides it."""
    return (side & -side).bit_length()


def _nearest_divisor(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wish))
