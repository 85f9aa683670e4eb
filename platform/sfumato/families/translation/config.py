"""The `model:` part of a recipe for the translation family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families.translation.generators import GENERATORS, GeneratorConfig
from sfumato.families.translation.generators.resnet import ResnetConfig
from sfumato.families.translation.objectives import OBJECTIVES, Objective, SamplingConfig
from sfumato.families.translation.objectives.pix2pix import Pix2Pix
from sfumato.families.translation.patches import PatchConfig

_ADAM = OptimizerConfig(name="adam", lr=LearningRate(peak=2e-4), betas=(0.5, 0.999))


class TranslationConfig(FamilyConfig):
    """Translators and their discriminators, trained against each other."""

    family: Literal["translation"] = Field("translation", description="Selects this family.")
    objective: Annotated[Objective, OBJECTIVES] = Field(
        Pix2Pix(), description="pix2pix learns from pairs, cyclegan from two sets without any."
    )
    generator: Annotated[GeneratorConfig, GENERATORS] = Field(
        ResnetConfig(), description="The network of every translator: unet or resnet."
    )
    discriminator: PatchConfig = Field(PatchConfig(), description="The network of every discriminator.")
    generator_optimizer: OptimizerConfig = Field(_ADAM, description="How the translators are trained.")
    discriminator_optimizer: OptimizerConfig = Field(_ADAM, description="How the discriminators are trained.")
    ema: EmaSchedule | None = Field(
        None,
        description="Average of the translators that is sampled; null samples with the weights themselves.",
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The image that is translated."""
        return (self.objective.source(data),)

    def couples_rows(self) -> bool:
        """Through dropout."""
        return self.generator.couples_rows

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        from sfumato.families.translation.family import TranslationFamily

        return TranslationFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """A residual translator of pairs, in which each image is its own source."""
        return cls.variants()["pix2pix"]

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every objective and every generator once."""
        patches = PatchConfig(width=4, halvings=1)
        unet, resnet = (GENERATORS.find(name).tiny() for name in ("unet", "resnet"))
        return {
            "pix2pix": cls(objective=Pix2Pix(column="image", l1=1.0), generator=unet, discriminator=patches),
            "cyclegan": cls(
                objective=OBJECTIVES.make("cyclegan", cycle=1.0, pool=2),
                generator=resnet,
                discriminator=patches,
                ema=EmaSchedule(halflife_images=200),
            ),
        }

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        return [
            *self.objective.problems(data, self.sampling),
            *self.generator.problems(data.height, data.width),
            *self.discriminator.problems(data.height, data.width),
        ]
