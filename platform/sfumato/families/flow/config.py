"""The `model:` part of a recipe for the flow family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate

if TYPE_CHECKING:
    from sfumato.families.flow.family import FlowFamily


class GlowConfig(Config):
    """Glow (Kingma & Dhariwal 2018): a level squeezes, runs its steps, splits off half the channels."""

    kind: Literal["glow"] = Field("glow", description="Selects Glow.")
    levels: int = Field(2, ge=1, description="L: levels, each of which halves the side.")
    steps: int = Field(
        8, ge=1, description="K: steps of a level (actnorm, 1x1 convolution, affine coupling)."
    )
    channels: int = Field(64, ge=1, description="Hidden channels of the coupling networks.")

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of."""
        return 1 << self.levels


class RealNvpConfig(Config):
    """Real NVP (Dinh, Sohl-Dickstein, Bengio 2017): checkerboard and channel-wise couplings in turn."""

    kind: Literal["realnvp"] = Field("realnvp", description="Selects Real NVP.")
    levels: int = Field(2, ge=1, description="Levels; every level but the last halves the side.")
    channels: int = Field(32, ge=1, description="Hidden channels of the coupling networks.")
    blocks: int = Field(2, ge=0, description="Residual blocks of a coupling network.")

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of; the last level needs 2x2 pixels."""
        return 1 << (self.levels - 1)


class UniformConfig(Config):
    """Uniform noise fills the steps between the 256 levels (Theis, van den Oord, Bethge 2016)."""

    kind: Literal["uniform"] = Field("uniform", description="Selects uniform dequantisation.")


class VariationalConfig(Config):
    """The noise has a learned distribution given the image (Flow++; Ho et al. 2019, sec. 3.1)."""

    kind: Literal["variational"] = Field("variational", description="Selects variational dequantisation.")
    steps: int = Field(4, ge=1, description="Checkerboard couplings of the noise's own flow.")
    channels: int = Field(32, ge=1, description="Hidden channels of its networks.")


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(
        1.0,
        ge=0,
        description="Factor on the latents' standard deviation (Kingma & Dhariwal 2018, sec. 6): below 1 is "
        "more typical and less varied.",
    )


class FlowConfig(FamilyConfig):
    """An invertible network between images and normal noise, trained by maximum likelihood."""

    family: Literal["flow"] = Field("flow", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class where the data has classes."
    )
    network: Annotated[GlowConfig | RealNvpConfig, Field(discriminator="kind")] = Field(
        GlowConfig(), description="The invertible network."
    )
    dequantization: Annotated[UniformConfig | VariationalConfig, Field(discriminator="kind")] = Field(
        UniformConfig(), description="How 256 levels become a continuous value."
    )
    logit_alpha: float | None = Field(
        None,
        ge=1e-7,
        lt=0.5,
        description="alpha of y = logit(alpha + (1 - 2 alpha) x), which frees the flow from the edges of "
        "[0, 1] (Dinh et al. 2017, sec. 4.1: 0.05); at least 1e-7, about the least that float32 "
        "adds to 1; null only centres x, as Glow does.",
    )
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(name="adam", lr=LearningRate(peak=1e-3, warmup_images=10_000), betas=(0.9, 0.999)),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(
        EmaSchedule(), description="Average of the weights, which samples and has the likelihood."
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe or the data has none."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def build(self, data: DataSpec) -> FlowFamily:
        """The family for images of this kind."""
        from sfumato.families.flow.family import FlowFamily

        return FlowFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """Glow with two levels of one step."""
        return cls(network=GlowConfig(levels=2, steps=1, channels=8))

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Both networks, both dequantisations, with classes and without."""
        nvp = RealNvpConfig(levels=2, channels=8, blocks=1)
        return {
            "tiny": cls.tiny(),
            "realnvp": cls(network=nvp, logit_alpha=0.05, condition="none"),
            "variational": cls(
                network=GlowConfig(levels=1, steps=1, channels=8),
                dequantization=VariationalConfig(steps=2, channels=8),
            ),
        }

    def problems(self, data: DataSpec) -> list[str]:
        """What makes this configuration impossible for this data, one line each with the nearest mend."""
        found = [
            f"model.network.levels: {self.network.levels} levels of {self.network.kind} need an image {name} "
            f"that is a multiple of {self.network.factor}{self._least()}, got {side}; "
            f"use {self._most(side)}"
            for name, side in (("height", data.height), ("width", data.width))
            if not self._fits(side)
        ]
        if self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found

    def _fits(self, side: int) -> bool:
        least = 2 if self.network.kind == "realnvp" else 1
        return side % self.network.factor == 0 and side // self.network.factor >= least

    def _least(self) -> str:
        return f" and at least {2 * self.network.factor}" if self.network.kind == "realnvp" else ""

    def _most(self, side: int) -> str:
        """The nearest mend: fewer levels, or another side where even one level does not fit."""
        network = self.network
        for levels in range(network.levels - 1, 0, -1):
            fewer = network.model_copy(update={"levels": levels})
            if self.model_copy(update={"network": fewer})._fits(side):
                return f"{levels} level{'s' if levels > 1 else ''}"
        return f"a side of {max(2, -(-side // network.factor)) * network.factor}"
