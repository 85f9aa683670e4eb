"""The `model:` part of a recipe for the gan family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families.gan.augmentations import AUGMENTATIONS, Augmentation
from sfumato.families.gan.losses import LOSSES, Loss
from sfumato.families.gan.losses.nonsaturating import Nonsaturating
from sfumato.families.gan.networks import NETWORKS, NetworkConfig
from sfumato.families.gan.networks.dcgan import DcganConfig
from sfumato.families.gan.path_length import PathLengthConfig
from sfumato.families.gan.penalties import PENALTIES, Penalty
from sfumato.families.gan.penalties.r1 import R1, R1Config
from sfumato.families.gan.sampling import SamplingConfig
from sfumato.families.gan.slopes import SlopePenalty
from sfumato.families.gan.variants import variants


class ObjectiveConfig(Config):
    """The game that the two networks play."""

    loss: Annotated[Loss, LOSSES] = Field(
        Nonsaturating(),
        description="nonsaturating (Goodfellow et al. 2014), hinge (Lim & Ye 2017), wasserstein (Arjovsky et "
        "al. 2017), least_squares (Mao et al. 2017), minimax (Goodfellow et al. 2014), relativistic (Huang "
        "et al. 2024).",
    )
    critic_steps: int = Field(
        1,
        ge=1,
        description="Updates of the discriminator per update of the generator, each on its own batch.",
    )
    gradient_penalty: float = Field(
        0.0,
        ge=0,
        description="lambda of lambda (|grad D| - 1)^2 between real and generated images (Gulrajani et al. "
        "2017); 10 is usual with wasserstein, 0 leaves it out.",
    )
    gradient_penalty_centre: Literal[0, 1] = Field(
        1,
        exclude_if=lambda value: value == 1,
        description="The length of gradient that gradient_penalty asks for: 1 (Gulrajani et al. 2017), or 0 "
        "(Thanh-Tung, Tran, Venkatesh 2019).",
    )
    r1: R1Config | None = Field(None, description="Gradient penalty on real images; null leaves it out.")
    penalties: tuple[Annotated[Penalty, PENALTIES], ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="Further penalties on the discriminator, such as {kind: r1, weight: 1}.",
    )
    corrected_adam: Annotated[bool, Before(2, False)] = Field(
        True,
        description="Whether the discriminator's Adam takes its learning rate times c and its betas to the "
        "power of c, where c = n / (n + sum of 1 / every over the penalties) and n = critic_steps. Every "
        "penalty is a step of its own, by which Adam would move further and forget faster (Karras et al. "
        "2020, app. B).",
    )

    path_length: PathLengthConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Path-length regularisation of a generator with styles (Karras et al. 2020); null leaves "
        "it out.",
    )
    feature_matching: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda value: not value,
        description="Factor, in the generator's loss, of the squared distance between the mean features of "
        "real and generated images (Salimans et al. 2016, sec. 3.1); 0 leaves it out.",
    )
    class_weight: float = Field(
        1.0,
        gt=0,
        exclude_if=lambda value: value == 1,
        description="Factor of the classes' cross-entropy in both losses, with label_score=auxiliary.",
    )
    augmentation: Annotated[Augmentation, AUGMENTATIONS] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Augmentation of what the discriminator sees: diffaugment (Zhao et al. 2020), ada "
        "(Karras et al. 2020); null leaves it out.",
    )

    @property
    def all_penalties(self) -> dict[str, Penalty]:
        """Those of `r1` and `penalties`, by the names of their phases."""
        found: dict[str, Penalty] = {} if self.r1 is None else {"r1": R1.of(self.r1)}
        for penalty in self.penalties:
            name = penalty.kind.rpartition(":")[2].lower()
            found[name if name not in found else f"{name}_{len(found)}"] = penalty
        return found

    @property
    def joined(self) -> dict[str, SlopePenalty]:
        """Those that are part of the discriminator's own loss."""
        return {
            name: penalty
            for name, penalty in self.all_penalties.items()
            if isinstance(penalty, SlopePenalty) and penalty.joined
        }

    @property
    def lazy(self) -> dict[str, Penalty]:
        """Those that are phases."""
        return {name: penalty for name, penalty in self.all_penalties.items() if name not in self.joined}

    def corrected(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The discriminator's optimizer, corrected for the steps that its penalties add."""
        added = sum(1 / penalty.every for penalty in self.lazy.values())
        return self._corrected(optimizer, self.critic_steps, added)

    def corrected_generator(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The generator's optimizer, corrected for the steps that the path length adds."""
        return self._corrected(optimizer, 1, 1 / self.path_length.every if self.path_length else 0)

    def _corrected(self, optimizer: OptimizerConfig, steps: int, added: float) -> OptimizerConfig:
        if not self.corrected_adam or not added or optimizer.name == "sgd":
            return optimizer
        c = steps / (steps + added)
        first, second = optimizer.betas
        rate = optimizer.lr.model_copy(update={"peak": optimizer.lr.peak * c})
        return optimizer.model_copy(update={"lr": rate, "betas": (first**c, second**c)})


_ADAM = OptimizerConfig(name="adam", lr=LearningRate(peak=2e-4), betas=(0.5, 0.999))


class GanConfig(FamilyConfig):
    """A generator and a discriminator, trained against each other."""

    family: Literal["gan"] = Field("gan", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class if the data has classes."
    )
    batch_statistics: Literal["standing", "running"] = Field(
        "standing",
        description="Statistics of a generator's batch normalisation in sampling: those of its own images, "
        "measured for its current weights (Brock et al. 2019), or averages over training (Ioffe & Szegedy "
        "2015).",
    )
    spectral_norm: Literal["converged", "power_iteration"] = Field(
        "converged",
        description="How a spectrally normalised discriminator finds the norm: from the weight alone, or by "
        "one power iteration from a vector that is carried from step to step (Miyato et al. 2018).",
    )
    latent: int = Field(64, ge=1, description="Numbers in the generator's input.")
    network: Annotated[NetworkConfig, NETWORKS] = Field(DcganConfig(), description="The two networks.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="Loss, penalties, critic steps.")
    generator_optimizer: OptimizerConfig = Field(_ADAM, description="How the generator is trained.")
    discriminator_optimizer: OptimizerConfig = Field(_ADAM, description="How the discriminator is trained.")
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the generator; it generates the samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe excludes it or the data has no classes."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def couples_rows(self) -> bool:
        """Batch normalisation mixes the rows of a micro-batch; other parts compare them."""
        compared = self.network.compares_rows or self.objective.feature_matching > 0
        return compared or "batch" in self.network.norms

    def compared_rows(self) -> int:
        """A group of the minibatch standard deviation."""
        return self.network.group

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        from sfumato.families.gan.family import GanFamily

        return GanFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """DCGAN with one doubling of the side, non-saturating loss, spectral norm."""
        return cls.variants()["tiny"]

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every loss, network, normalisation and penalty at least once."""
        return {name: cls.model_validate({"family": "gan", **parts}) for name, parts in variants().items()}

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = [
            *self.network.problems(data),
            *self._penalty_problems(),
            *self._remedy_problems(data),
            *self._sampling_problems(),
        ]
        if self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found

    def _sampling_problems(self) -> list[str]:
        (norm, other), given = self.network.norms, self.sampling.statistics
        found = []
        if self.batch_statistics == "running" and norm != "batch":
            found.append(f"model.batch_statistics: no effect on generator_norm={norm}; leave it out")
        if self.spectral_norm == "power_iteration" and other != "spectral":
            found.append(f"model.spectral_norm: no effect on discriminator_norm={other}; leave it out")
        if given != SamplingConfig.model_fields["statistics"].default:
            where = f"model.network.generator_norm={norm}" if norm != "batch" else ""
            where = where or ("model.batch_statistics=running" if self.batch_statistics == "running" else "")
            if where:
                found.append(f"model.sampling.statistics: {given} has no effect on {where}; leave it out")
        return found

    def _penalty_problems(self) -> list[str]:
        objective, (_, norm) = self.objective, self.network.norms
        found = []
        fields = ("gradient_penalty", "r1", "penalties")
        for field, given in ((field, getattr(objective, field)) for field in fields):
            if given and norm == "batch":
                found.append(
                    f"model.objective.{field}: the gradient of one image's score has no meaning where "
                    "model.network.discriminator_norm=batch mixes images; set that to spectral or none"
                )
        clipped = self.discriminator_optimizer.clip_weights is not None
        bounded = objective.gradient_penalty or clipped or objective.all_penalties.keys() & {"zero_centred"}
        if objective.loss.needs_bound and not bounded and norm != "spectral":
            found.append(
                f"model.objective.loss: {objective.loss.kind} needs a bounded critic, and "
                f"discriminator_norm={norm} does not bound it; set model.objective.gradient_penalty=10 or "
                "discriminator_norm=spectral"
            )
        return found

    def _remedy_problems(self, data: DataSpec) -> list[str]:
        """Remedies that the chosen networks have no part for, and settings without effect."""
        objective, network, found = self.objective, self.network, []
        classes = bool(data.num_classes and self.conditions(data))
        if objective.path_length is not None and not network.styles:
            found.append(
                f"model.objective.path_length: {network.kind} has no styles; use network.kind=stylegan2, or "
                "leave it out"
            )
        if objective.feature_matching and not network.judges:
            found.append(
                f"model.objective.feature_matching: {network.kind} gives no features; use dcgan, "
                "resnet or mlp"
            )
        if network.classifies and not classes:
            found.append(
                "model.network.label_score: auxiliary classifies images, but the model has no classes; leave "
                "it out"
            )
        if objective.class_weight != 1 and not network.classifies:
            found.append(
                "model.objective.class_weight: no effect without model.network.label_score=auxiliary; leave "
                "it out"
            )
        if objective.gradient_penalty_centre != 1 and not objective.gradient_penalty:
            found.append(
                "model.objective.gradient_penalty_centre: no effect without gradient_penalty; leave it out"
            )
        if self.sampling.psi is not None and not network.styles:
            found.append(
                f"model.sampling.psi: {network.kind} has no styles; use sampling.truncation, which shortens "
                "latents"
            )
        if objective.augmentation is not None:
            found += objective.augmentation.problems(data)
        return found
