"""The `model:` part of a recipe for the diffusion family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.components import OneOf, read
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.core.validation import first_problem
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion import start
from sfumato.families.diffusion.adapters import ADAPTERS, AdapterConfig, Lower
from sfumato.families.diffusion.alignment import AlignmentConfig
from sfumato.families.diffusion.guidance.autoguidance import guide_problems
from sfumato.families.diffusion.latent import latent_spec
from sfumato.families.diffusion.networks import NETWORKS, NetworkConfig, TextNetworkConfig
from sfumato.families.diffusion.networks.unet import UNetConfig
from sfumato.families.diffusion.objectives import (
    DEFAULT_LABEL_DROPOUT,
    OBJECTIVES,
    GuidableObjective,
    GuidedSampling,
    ObjectiveConfig,
    SamplingBase,
)
from sfumato.families.diffusion.objectives.ddpm import DDPMConfig, DDPMSampling
from sfumato.families.diffusion.preference import PreferenceConfig
from sfumato.text.config import TextConfig


class DiffusionConfig(FamilyConfig):
    """Denoising from noise to image: a network, an objective that trains it, and a matching sampler."""

    family: Literal["diffusion"] = Field("diffusion", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class if the data has classes."
    )
    text: TextConfig | None = Field(
        None, description="Condition on texts instead of classes; the network must be one of texts."
    )
    network: Annotated[NetworkConfig, NETWORKS] = Field(
        UNetConfig(), description="Kind and size of the network: unet or dit; unet_text for texts."
    )
    pretrained: PretrainedModel | None = Field(
        None,
        description="Start from this model: a run, a folder of a diffusers pipeline, or one file. What the "
        "recipe leaves out is taken over from it: network, texts, objective, first stage, sampling.",
    )
    adapter: Annotated[AdapterConfig, ADAPTERS] | None = Field(
        None,
        description="Train this on the pretrained network instead of all of its weights: layers, lora, ...",
    )
    alignment: AlignmentConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Train tokens of the network to tell a frozen network's features (REPA, Yu et al. 2025).",
    )
    preference: PreferenceConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Tune the pretrained model by pairs of images, of which one was preferred (DPO).",
    )
    objective: Annotated[ObjectiveConfig, OBJECTIVES] = Field(
        DDPMConfig(),
        description="What the network learns: ddpm, rectified_flow or edm; for few steps: consistency, ect, "
        "scm, mean_flow, shortcut, consistency_distillation, progressive_distillation, dmd2, "
        "adversarial_distillation or reflow.",
    )
    first_stage: FirstStageConfig | None = Field(
        None, description="A trained autoencoder: the model then works on its latents, not on pixels."
    )
    latent_scale: float | None = Field(
        None,
        gt=0,
        description="Factor on the latents; null measures it on the first batch, for a standard deviation of "
        "one, and keeps it with the weights.",
    )
    latent_norm: Literal["whole", "channel"] = Field(
        "whole",
        exclude_if=lambda value: value == "whole",
        description="Whether latents have one factor, or each channel a factor and a shift of its own, "
        "measured on the first batch and kept with the weights.",
    )
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: Annotated[EmaSchedule, Before(2, EmaSchedule())] = Field(
        EmaSchedule(sigma_rel=0.1), description="Average of the weights; it generates the samples."
    )
    sampling: Annotated[
        SamplingBase, OneOf(SamplingBase, lambda: [kind.Sampling for kind in OBJECTIVES.all().values()])
    ] = Field(DDPMSampling(), description="Defaults of sampling; the options are those of the objective.")

    @model_validator(mode="before")
    @classmethod
    def _sampling_of_the_objective(cls, content: Any) -> Any:
        """Say which class reads `sampling`. The field itself comes before the objective: it is the base's."""
        if not isinstance(content, Mapping):
            return content
        objective = OBJECTIVES.chosen(content.get("objective", {}))
        kind = None if objective is None else objective.Sampling
        return {**content, "sampling": (kind, content.get("sampling") or {})}

    @field_validator("sampling", mode="before")
    @classmethod
    def _read_sampling(cls, content: Any) -> Any:
        kind, given = content
        if kind is None:  # the objective is wrong, and has its own error
            return DDPMSampling()
        if isinstance(given, Mapping):
            return read(kind, given)
        if not isinstance(given, kind):
            raise ValueError(
                f"expected a mapping of {kind.__name__}, which is what this objective samples by"
            )
        return given

    def completed(self) -> Self:
        """With the fields that the pretrained model brings and the recipe leaves out."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if self.pretrained is None or not start.missing(self.pretrained, given):
            return self
        fields = start.taken_over(self.pretrained, given, self.sampling)
        try:
            return type(self).model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"model.pretrained: {first_problem(error, type(self))}") from None

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The text of an image; or its class, unless the recipe excludes it or the data has no classes."""
        more = () if self.adapter is None else self.adapter.conditions(data)
        if self.text is not None:
            return (self.text.condition(negative=isinstance(self.sampling, GuidedSampling)), *more)
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL, *more) if classes else more

    def takes_several_sizes(self) -> bool:
        """A network that can, on pixels, does."""
        return self.network.takes_several_sizes() and self.first_stage is None

    def label_dropout(self, data: DataSpec) -> float:
        """The share of labels dropped in training."""
        objective: Config = self.objective
        if LABEL not in self.conditions(data) or not isinstance(objective, GuidableObjective):
            return 0.0
        return DEFAULT_LABEL_DROPOUT if objective.label_dropout is None else objective.label_dropout

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        # They load diffusers.
        from sfumato.families.diffusion.bounded_family import BoundedDiffusionFamily
        from sfumato.families.diffusion.family import DiffusionFamily

        bounded = self._bounded and self.first_stage is None
        return (BoundedDiffusionFamily if bounded else DiffusionFamily)(self, data)

    @property
    def _bounded(self) -> bool:
        return self.sampling.measures_likelihood

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels, 20 noise levels, 3 sampling steps; guided."""
        return cls(
            network=UNetConfig.tiny(),
            objective=DDPMConfig.tiny(),
            sampling=DDPMSampling(steps=3, guidance=1.5),
        )

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every objective and every network; each at the smallest size."""
        from sfumato.families.diffusion.variants import variants

        return {
            name: cls.model_validate({"family": "diffusion", **parts}) for name, parts in variants().items()
        }

    def couples_rows(self) -> bool:
        """Whether the network has dropout, whose mask is one draw for the whole micro-batch, or the objective
        compares rows."""
        return self.network.couples_rows() or self.objective.couples_rows()

    def compared_rows(self) -> int:
        """As the objective compares them."""
        return self.objective.compared_rows()

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = [
            *self._size_problems(data),
            *(self._label_problems(data) if self.text is None else self._text_problems(self.text, data)),
            *self.objective.problems(self, data),
            *self.sampling.problems(self.objective, latents=self.first_stage is not None),
            *([] if self.alignment is None else self.alignment.problems(self.network)),
            *([] if self.pretrained is None else start.problems(self.pretrained, self.network)),
        ]
        if self.preference is not None:
            found += self.preference.problems(data, pretrained=self.pretrained is not None)
            if self.alignment is not None:
                found.append("model.alignment: there is model.preference too; leave one out")
        return found or self._adapter_problems(data)

    def _adapter_problems(self, data: DataSpec) -> list[str]:
        """What the adapter says of the network, built without memory."""
        if self.adapter is None:
            if getattr(self.sampling, "image_guidance", 1.0) != 1:
                return ["model.sampling.image_guidance: no image steers this model; leave it out"]
            return []
        if self.pretrained is None and self.adapter.needs_base:
            return ["model.adapter: adapts a trained network; name it in model.pretrained"]
        if self.text is None and self.adapter.names and self.adapter.of_texts:
            return [f"model.adapter: {self.adapter.kind} needs a model of texts; this one has none"]
        weight = getattr(self.sampling, "image_guidance", 1.0)
        if weight != 1 and not self.adapter.droppable:
            return [
                (
                    f"model.sampling.image_guidance: {weight:g} needs model.adapter.dropout above 0 (such as "
                    "0.05); set it to 1"
                )
            ]
        from sfumato.families.diffusion.backbone import plain_network  # loads diffusers

        found = self.adapter.problems(plain_network(self, data)) or self.adapter.data_problems(data)
        return found or self._lower_problems(self.adapter.lower, data)

    def _lower_problems(self, lower: Lower | None, data: DataSpec) -> list[str]:
        if lower is None:
            return []
        from sfumato.families.diffusion.below import below_problems

        return list(below_problems(lower, self.conditions(data), data))

    def _size_problems(self, data: DataSpec) -> list[str]:
        if self.first_stage is None:
            found = self.network.problems(data)
            if self.latent_scale is not None:
                found.append("model.latent_scale: has no effect without model.first_stage; leave it out")
            if self.latent_norm != "whole":
                found.append("model.latent_norm: has no effect without model.first_stage; leave it out")
            return found
        if self.latent_norm != "whole" and self.latent_scale is not None:
            why = "but latent_norm=channel measures a factor for each channel; leave one out"
            return [f"model.latent_scale: {self.latent_scale:g}, {why}"]
        if found := self.first_stage.problems(data, config_class):
            return found
        if self._bounded:
            return [
                "model.sampling.likelihood_steps: the likelihood is of pixels, not of latents; leave it out"
            ]
        if self.sampling.clip:
            return ["model.sampling.clip: latents are not bound to [-1, 1]; leave it out or set it to false"]
        return self.network.problems(latent_spec(self.first_stage.open(config_class, data), data), "latent")

    def _text_problems(self, text: TextConfig, data: DataSpec) -> list[str]:
        network, sampling = self.network, self.sampling
        found = text.problems(data)
        if not isinstance(network, TextNetworkConfig):
            names = [
                name
                for name, kind in NETWORKS.all().items()
                if issubclass(kind, TextNetworkConfig) and not kind.of_pretrained
            ]
            found.append(f"model.network: {network.kind} takes no texts; use {' or '.join(names)}")
        elif not found:
            found = network.text_problems(text.shape())
        guidance = sampling.guidance if isinstance(sampling, GuidedSampling) else 1.0
        found += text.clashes(self.condition, guidance)
        if getattr(self.objective, "label_dropout", None):
            found.append("model.objective.label_dropout: there are texts, no labels; set model.text.dropout")
        if isinstance(sampling, GuidedSampling) and sampling.guide is not None:
            found.append("model.sampling.guide: guides models of classes; for texts, leave it out")
        return found

    def _label_problems(self, data: DataSpec) -> list[str]:
        if isinstance(self.network, TextNetworkConfig):
            return [f"model.network: {self.network.kind} is a network of texts; give model.text"]
        if self.condition == "class" and not data.num_classes:
            return ["model.condition: 'class', but the data has no classes; set model.condition=none"]
        dropout = getattr(self.objective, "label_dropout", None)
        guided = self.sampling if isinstance(self.sampling, GuidedSampling) else None
        if guided is not None and guided.guide is not None:
            return guide_problems(guided.guide, self, data)
        guidance = 1.0 if guided is None else guided.guidance
        found = []
        if LABEL not in self.conditions(data):
            why = "the data has no classes" if not data.num_classes else "model.condition is 'none'"
            if dropout:
                found.append(f"model.objective.label_dropout: {dropout:g}, but {why}; leave it out")
            if guidance != 1:
                found.append(f"model.sampling.guidance: {guidance:g}, but {why}; set it to 1")
        elif guidance != 1 and not self.label_dropout(data):
            found.append(
                f"model.sampling.guidance: {guidance:g} needs a model trained with "
                f"model.objective.label_dropout above 0 (such as {DEFAULT_LABEL_DROPOUT}); set guidance to 1"
            )
        return found
