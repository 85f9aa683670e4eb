"""The `model:` part of a recipe for the gan family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate

if TYPE_CHECKING:
    from sfumato.families.gan.family import GanFamily

_Width = Annotated[int, Field(gt=0)]


class DcganConfig(Config):
    """Plain stacks of strided convolutions (Radford, Metz, Chintala 2016)."""

    kind: Literal["dcgan"] = Field("dcgan", description="Selects DCGAN.")
    channels: tuple[_Width, ...] = Field(
        (128, 64),
        min_length=1,
        description="Channels of the generator from its lowest resolution up; each entry doubles the side.",
    )
    discriminator_channels: tuple[_Width, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of the discriminator from the image down; each entry halves the side. Null "
        "mirrors the generator.",
    )
    generator_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation in the generator: over the rows of a micro-batch, or of each image "
        "alone in up to 8 groups of channels.",
    )
    discriminator_norm: Literal["spectral", "batch", "none"] = Field(
        "spectral", description="What keeps the discriminator in bounds."
    )


class ResnetConfig(Config):
    """Residual blocks, as in SNGAN (Miyato et al. 2018, tables 4 and 5)."""

    kind: Literal["resnet"] = Field("resnet", description="Selects the residual networks.")
    channels: tuple[_Width, ...] = Field(
        (128, 128),
        min_length=1,
        description="Channels of the generator's blocks, lowest resolution first; each doubles the side.",
    )
    discriminator_channels: tuple[_Width, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of the discriminator's blocks from the image down; each halves the side. Null "
        "mirrors the generator.",
    )
    flat_blocks: int = Field(1, ge=0, description="Further blocks of the discriminator at its last side.")
    generator_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation in the generator: over the rows of a micro-batch, or of each image "
        "alone in up to 8 groups of channels.",
    )
    discriminator_norm: Literal["spectral", "none"] = Field(
        "spectral", description="What keeps the discriminator in bounds."
    )


class R1Config(Config):
    """The zero-centred gradient penalty on real images (Mescheder, Geiger, Nowozin 2018)."""

    weight: float = Field(1.0, gt=0, description="gamma of (gamma / 2) E |grad D(x)|^2.")
    every: int = Field(
        16,
        ge=1,
        description="Steps between two penalties, each of which counts as many times (lazy regularisation, "
        "Karras et al. 2020).",
    )
    estimator: Literal["exact", "finite_difference"] = Field(
        "exact",
        description="exact differentiates twice; finite_difference takes the slope along a random direction, "
        "which every parallel.strategy can.",
    )
    step: float = Field(
        0.01, gt=0, le=1, description="Half the distance of the two points of a finite difference."
    )

    @model_validator(mode="after")
    def _step_has_effect(self) -> Self:
        # By value, here and elsewhere: a stored configuration has every field set.
        if self.estimator == "exact" and self.step != type(self).model_fields["step"].default:
            raise ValueError(
                f"step: {self.step:g} has no effect on estimator=exact; leave it out, or set "
                "estimator=finite_difference"
            )
        return self


class ObjectiveConfig(Config):
    """The game that the two networks play."""

    loss: Literal["nonsaturating", "hinge", "wasserstein", "least_squares"] = Field(
        "nonsaturating",
        description="nonsaturating (Goodfellow et al. 2014), hinge (Lim & Ye 2017), wasserstein (Arjovsky et "
        "al. 2017), least_squares (Mao et al. 2017).",
    )
    critic_steps: int = Field(
        1,
        ge=1,
        description="Updates of the discriminator for one of the generator, each on a batch of its own.",
    )
    gradient_penalty: float = Field(
        0.0,
        ge=0,
        description="lambda of lambda (|grad D| - 1)^2 between real and generated images (Gulrajani et al. "
        "2017); 10 is usual with wasserstein, 0 leaves it out.",
    )
    r1: R1Config | None = Field(None, description="Gradient penalty on real images; null leaves it out.")


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    truncation: float | None = Field(
        None,
        gt=0,
        description="Latents are normal numbers of at most this size (Brock et al. 2019, sec. 3.1): lower is "
        "more typical and less varied; null does not truncate.",
    )
    statistics: int = Field(
        512,
        ge=64,
        multiple_of=64,
        description="Generated images whose statistics batch normalisation samples with.",
    )


_ADAM = OptimizerConfig(name="adam", lr=LearningRate(peak=2e-4), betas=(0.5, 0.999))


class GanConfig(FamilyConfig):
    """A generator and a discriminator, trained against each other."""

    family: Literal["gan"] = Field("gan", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class where the data has classes."
    )
    latent: int = Field(64, ge=1, description="Numbers in the generator's input.")
    network: Annotated[DcganConfig | ResnetConfig, Field(discriminator="kind")] = Field(
        DcganConfig(), description="The two networks."
    )
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="Loss, penalties, critic steps.")
    generator_optimizer: OptimizerConfig = Field(_ADAM, description="How the generator is trained.")
    discriminator_optimizer: OptimizerConfig = Field(_ADAM, description="How the discriminator is trained.")
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the generator, which is what samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe or the data has none."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def couples_rows(self) -> bool:
        """Batch normalisation mixes the rows of a micro-batch."""
        return "batch" in (self.network.generator_norm, self.network.discriminator_norm)

    def build(self, data: DataSpec) -> GanFamily:
        """The family for images of this kind."""
        from sfumato.families.gan.family import GanFamily

        return GanFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """DCGAN with one doubling of the side, non-saturating loss, spectral norm."""
        network = DcganConfig(channels=(8,))
        return cls(latent=4, network=network, sampling=SamplingConfig(statistics=64))

    @classmethod
    def _small(
        cls,
        network: DcganConfig | ResnetConfig,
        condition: Literal["auto", "none"] = "auto",
        **objective: object,
    ) -> Self:
        return cls(
            condition=condition,
            latent=4,
            network=network,
            objective=ObjectiveConfig.model_validate(objective),
            sampling=SamplingConfig(statistics=64) if network.generator_norm == "batch" else SamplingConfig(),
        )

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every loss, network, normalisation and penalty at least once."""
        plain = DcganConfig(channels=(8,), generator_norm="group", discriminator_norm="none")
        batch = DcganConfig(channels=(8, 8), discriminator_norm="batch")
        residual = ResnetConfig(channels=(8,), generator_norm="group", flat_blocks=1)
        finite = R1Config(every=2, estimator="finite_difference")

        return {
            "tiny": cls.tiny(),
            "least-squares": cls._small(batch, loss="least_squares"),
            "hinge": cls._small(residual, loss="hinge", critic_steps=2),
            "wasserstein": cls._small(plain, loss="wasserstein", gradient_penalty=10.0),
            "r1": cls._small(plain, r1=R1Config(every=2)),
            "r1-finite-difference": cls._small(plain, r1=finite),
            "unconditional": cls._small(ResnetConfig(channels=(8,)), condition="none"),
        }

    def problems(self, data: DataSpec) -> list[str]:
        """What makes this configuration impossible for this data, one line each with the nearest mend."""
        found = [*_size_problems(self.network, data), *self._penalty_problems(), *self._sampling_problems()]
        if self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found

    def _sampling_problems(self) -> list[str]:
        norm, given = self.network.generator_norm, self.sampling.statistics
        if norm == "batch" or given == SamplingConfig.model_fields["statistics"].default:
            return []
        where = f"model.network.generator_norm={norm}"
        return [f"model.sampling.statistics: {given} has no effect on {where}; leave it out"]

    def _penalty_problems(self) -> list[str]:
        objective, norm = self.objective, self.network.discriminator_norm
        found = []
        for field, given in (("gradient_penalty", objective.gradient_penalty), ("r1", objective.r1)):
            if given and norm == "batch":
                found.append(
                    f"model.objective.{field}: the gradient of one image's score has no meaning where "
                    "model.network.discriminator_norm=batch mixes images; set that to spectral or none"
                )
        if objective.loss == "wasserstein" and not objective.gradient_penalty and norm != "spectral":
            found.append(
                f"model.objective.loss: wasserstein needs a bounded critic, and discriminator_norm={norm} "
                "does not bound it; set model.objective.gradient_penalty=10 or discriminator_norm=spectral"
            )
        return found


def _size_problems(network: DcganConfig | ResnetConfig, data: DataSpec) -> list[str]:
    found = []
    doublings = len(network.channels)
    for name, side in (("height", data.height), ("width", data.width)):
        if side % (1 << doublings):
            most = (side & -side).bit_length() - 1
            near = max(1, round(side / (1 << doublings))) << doublings
            mend = f"at most {most} entries" if most else f"a {name} of {near}"
            found.append(
                f"model.network.channels: {doublings} entries double the side {doublings} times, which "
                f"cannot give an image {name} of {side}; use {mend}"
            )
    halvings = len(network.discriminator_channels or network.channels)
    side = min(data.height, data.width)
    if side >> halvings == 0:
        found.append(
            f"model.network.discriminator_channels: {halvings} entries halve the image {halvings} times, but "
            f"its side is {side}; use at most {side.bit_length() - 1}"
        )
    return found
