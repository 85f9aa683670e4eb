"""The `model:` part of a recipe for the gan family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families.gan.networks import NETWORKS, NetworkConfig
from sfumato.families.gan.networks.dcgan import DcganConfig
from sfumato.families.gan.objective import ObjectiveConfig
from sfumato.families.gan.sampling import SamplingConfig
from sfumato.families.gan.variants import variants
from sfumato.text.config import TextConfig
from sfumato.text.pooled import pooled_problems

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
    text: TextConfig | None = Field(None, description="Condition on pooled texts instead of classes.")
    matching: bool = Field(
        True,
        description="With texts: the discriminator also learns to tell real images with the texts of others "
        "(Reed et al. 2016).",
    )
    text_attention: tuple[int, ...] = Field(
        (),
        description="With texts: stages of the generator, 0 the one of the lowest side, that also attend to "
        "the text's tokens.",
    )
    latent: int = Field(64, ge=1, description="Numbers in the generator's input.")
    network: Annotated[NetworkConfig, NETWORKS] = Field(DcganConfig(), description="The two networks.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="Loss, penalties, critic steps.")
    generator_optimizer: OptimizerConfig = Field(_ADAM, description="How the generator is trained.")
    discriminator_optimizer: OptimizerConfig = Field(_ADAM, description="How the discriminator is trained.")
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the generator; it generates the samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The text of an image; or its class, unless the recipe excludes it or the data has no classes."""
        if self.text is not None:
            return (self.text.condition(negative=False),)
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def couples_rows(self) -> bool:
        """Batch normalisation mixes the rows of a micro-batch; other parts compare them."""
        compared = self.network.compares_rows or self.objective.feature_matching > 0
        matched = self.text is not None and self.matching
        return compared or matched or "batch" in self.network.norms

    def compared_rows(self) -> int:
        """A group of the minibatch standard deviation."""
        return self.network.group

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        if self.text is not None:
            from sfumato.families.gan.text_family import TextGanFamily

            return TextGanFamily(self, data, self.text)
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
        if self.text is not None:
            return found + self._text_problems(self.text, data)
        if self.text_attention:
            found.append("model.text_attention: there are no texts; give model.text, or leave it out")
        if self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found

    def amount_problems(self, data: DataSpec, *, batch: int, samples: int | None) -> list[str]:
        """An augmentation that follows the discriminator in too large steps."""
        augmentation = self.objective.augmentation
        return [] if augmentation is None else augmentation.amount_problems(batch)

    def _text_problems(self, text: TextConfig, data: DataSpec) -> list[str]:
        found = pooled_problems(text, text.problems(data)) + text.clashes(self.condition)
        if self.network.norms[0] == "batch" and self.batch_statistics == "standing":
            found.append(
                "model.network.generator_norm: batch measures its statistics for classes, not for texts; set "
                "it to group, or model.batch_statistics=running"
            )
        found += self._attention_problems(text)
        if not self.network.embeds_classes:
            found.append(
                f"model.text: {self.network.kind} takes classes by their numbers, which a text has not; use "
                "dcgan, resnet (with label_score=projection), biggan, progan or r3gan"
            )
        return found

    def _attention_problems(self, text: TextConfig) -> list[str]:
        stages, wanted = len(self.network.stages), self.text_attention
        if not wanted:
            return []
        if not stages:
            return [f"model.text_attention: {self.network.kind} attends to no tokens; use r3gan or resnet"]
        if unknown := [stage for stage in wanted if not 0 <= stage < stages]:
            return [
                f"model.text_attention: there is no stage {unknown[0]}; the generator has 0 to {stages - 1}"
            ]
        if not text.shape().tokens:
            return ["model.text_attention: attends to tokens; let an encoder have uses=both"]
        return []

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

    def _replay_problems(self, data: DataSpec) -> list[str]:
        replay, field = self.objective.replay, "model.objective.replay"
        if replay is None:
            return []
        if self.text is not None or not self.conditions(data):
            return [f"{field}: asks an earlier self for classes, and the model has none; leave it out"]
        named = [label for stage in replay.stages for label in stage.classes]
        if unknown := [label for label in named if not 0 <= label < data.num_classes]:
            return [f"{field}.stages: {unknown[0]} is not a class; the data has 0 to {data.num_classes - 1}"]
        if self.network.norms[0] == "batch":
            missing = "the earlier self has no statistics for batch normalisation"
            return [f"{field}: {missing}; set model.network.generator_norm=group"]
        return []

    def _consolidation_problems(self) -> list[str]:
        held, replay, field = (
            self.objective.consolidation,
            self.objective.replay,
            "model.objective.consolidation",
        )
        if held is None:
            return []
        if self.text is not None:
            return [f"{field}: holds models of classes, and this one follows texts; leave it out"]
        ends = () if replay is None else tuple(stage.images for stage in replay.stages)
        if replay is not None and ends != held.stages:
            return [
                f"{field}.stages: {list(held.stages)}, and those of replay end at {list(ends)}; use the same"
            ]
        return []

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
        found += self.sampling.style_problems(network.kind, styles=network.styles, noisy=network.noisy)
        if objective.consistency is not None and network.norms[1] == "batch":
            found.append(
                "model.objective.consistency: compares scores of single images, which "
                "model.network.discriminator_norm=batch mixes; set that to spectral or none"
            )
        found += self._replay_problems(data) + self._consolidation_problems()
        if objective.augmentation is not None:
            found += objective.augmentation.problems(data)
        return found
