"""The `model:` part of a recipe for the flow family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families import config_class
from sfumato.families.flow.bijection import Decoding
from sfumato.families.flow.dequantization import DEQUANTIZATIONS, Dequantization
from sfumato.families.flow.dequantization.uniform import UniformConfig
from sfumato.families.flow.networks import NETWORKS, NetworkConfig
from sfumato.families.flow.networks.glow import GlowConfig
from sfumato.text.config import TextConfig
from sfumato.text.encoders import ENCODERS
from sfumato.text.pooled import pooled_problems

_TINY_STAGE = {
    "family": "vae",
    "config": {
        "family": "vae",
        "latent": {"kind": "kl", "channels": 2},
        "network": {"channels": [4, 8], "norm_groups": 2},
    },
    "data": {"channels": 1, "height": 8, "width": 8},
}
"""The autoencoder of the smallest flow of latents."""


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(
        1.0,
        ge=0,
        description="Factor on the latents' standard deviation (Kingma & Dhariwal 2018, sec. 6): below 1 is "
        "more typical and less varied.",
    )
    guidance: float = Field(
        1.0,
        ge=0,
        description="Weight of the class (Zhai et al. 2024, sec. 3.4), of TarFlow; 1 is the plain model.",
    )
    guidance_schedule: Literal["rising", "constant"] = Field(
        "rising",
        description="Whether the weight rises from 1 at a map's first token to its value at the last.",
    )
    order: Literal["cache", "sequential", "jacobi"] = Field(
        "cache",
        description="How TarFlow's maps are inverted: token by token with a cache of keys and values, "
        "without one, or all tokens at once until none changes. The images are the same.",
    )
    denoise: bool = Field(
        True,
        description="Remove the noise of gaussian dequantisation by the score (Zhai et al. 2024, eq. 8).",
    )

    @property
    def decoding(self) -> Decoding:
        """What the maps need to know of this."""
        return Decoding(self.guidance, self.guidance_schedule == "rising", self.order)


class FlowConfig(FamilyConfig):
    """An invertible network that maps images to normal noise, trained by maximum likelihood."""

    family: Literal["flow"] = Field("flow", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class if the data has classes."
    )
    text: TextConfig | None = Field(None, description="Condition on pooled texts instead of classes.")
    network: Annotated[NetworkConfig, NETWORKS] = Field(GlowConfig(), description="The invertible network.")
    dequantization: Annotated[Dequantization, DEQUANTIZATIONS] = Field(
        UniformConfig(), description="How 256 levels become a continuous value."
    )
    first_stage: FirstStageConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="A trained autoencoder: the flow then works on its latents (STARFlow: Gu et al. 2025), "
        "with noise of dequantization.kind=gaussian.",
    )
    latent_scale: float | None = Field(
        None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="Factor on the latents; null measures it on the first batch, for a standard deviation of "
        "one, and keeps it with the weights.",
    )
    latent_norm: Literal["whole", "channel"] = Field(
        "whole",
        exclude_if=lambda value: value == "whole",
        description="Whether latents have one factor, or each channel a factor and a shift of its own, "
        "measured on the first batch and kept with the weights.",
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
        EmaSchedule(), description="Average of the weights; it generates samples and gives the likelihood."
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The text of an image; or its class, unless the recipe excludes it or the data has no classes."""
        if self.text is not None:
            return (self.text.condition(negative=False),)
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        if self.text is not None:
            from sfumato.families.flow.text_family import TextFlowFamily

            return TextFlowFamily(self, data, self.text)
        if self.first_stage is not None:
            from sfumato.families.flow.latent_family import LatentFlowFamily

            return LatentFlowFamily(self, data, self.first_stage.open(config_class, data))
        from sfumato.families.flow.family import FlowFamily

        return FlowFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        """Glow with two levels of one step."""
        return cls(network=GlowConfig.tiny())

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every network and every dequantisation, with classes and without."""
        found = {
            "tiny": cls.tiny(),
            "realnvp": cls(network=NETWORKS.find("realnvp").tiny(), logit_alpha=0.05, condition="none"),
        }
        others = [name for name in NETWORKS.names() if name not in ("glow", "realnvp")]
        networks = {name: NETWORKS.find(name).tiny() for name in others}
        found |= {
            name: cls(
                network=tiny, sampling=SamplingConfig(guidance=1.5) if tiny.dropped else SamplingConfig()
            )
            for name, tiny in networks.items()
        }
        found["latent"] = cls(
            network=NETWORKS.find("tarflow").tiny().model_copy(update={"patch": 2}),
            dequantization=DEQUANTIZATIONS.make("gaussian", std=0.3),
            first_stage=FirstStageConfig.model_validate({"model": _TINY_STAGE}),
        )
        small = GlowConfig(levels=1, steps=1, channels=8)
        found["text"] = cls(network=small, text=TextConfig(encoders=(ENCODERS.find("joint").tiny(),)))
        return found | {
            name: cls(network=small, dequantization=DEQUANTIZATIONS.find(name).tiny())
            for name in DEQUANTIZATIONS.names()
            if name != DEQUANTIZATIONS.default
        }

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = self._size_problems(data)
        if self.text is not None:
            texts = pooled_problems(self.text, self.text.problems(data))
            return found + texts + self.text.clashes(self.condition)
        if self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        if self.dequantization.noise_std and self.logit_alpha is not None:
            found.append(
                f"model.logit_alpha: {self.logit_alpha:g} takes no values outside [0, 1], to which normal "
                "noise leads; set model.logit_alpha=null"
            )
        return found + self._sampling_problems(data)

    def _size_problems(self, data: DataSpec) -> list[str]:
        if self.first_stage is None:
            given = {
                "latent_scale": self.latent_scale is not None,
                "latent_norm": self.latent_norm != "whole",
            }
            return self.network.problems(data) + [
                f"model.{name}: has no effect without model.first_stage; leave it out"
                for name, changed in given.items()
                if changed
            ]
        if found := self._latent_problems() or self.first_stage.problems(data, config_class):
            return found
        channels, height, width = self.first_stage.open(config_class, data).spec.latent
        return self.network.problems(DataSpec(channels, height, width, data.classes, data.extra))

    def _latent_problems(self) -> list[str]:
        """What does not go with latents."""
        if self.text is not None:
            return ["model.first_stage: flows of latents take classes, not texts; leave model.text out"]
        if self.dequantization.kind != "gaussian":
            fix = "set model.dequantization={kind: gaussian, std: 0.3}"
            return [f"model.dequantization: latents have no levels; {fix}"]
        if self.logit_alpha is not None:
            return ["model.logit_alpha: latents are not bound to [0, 1]; set it to null"]
        if self.latent_norm != "whole" and self.latent_scale is not None:
            why = "but latent_norm=channel measures a factor for each channel; leave one out"
            return [f"model.latent_scale: {self.latent_scale:g}, {why}"]
        return []

    def _sampling_problems(self, data: DataSpec) -> list[str]:
        found, kind, options = [], self.network.kind, self.sampling
        guided = f"model.sampling.guidance: {options.guidance:g}"
        if self.network.dropped is None:
            if options.guidance != 1:
                found.append(f"{guided}, but {kind} is not trained for guidance; set it to 1")
            if options.order != "cache":
                found.append(f"model.sampling.order: {options.order} has no effect on {kind}; leave it out")
        elif options.guidance != 1 and not self.conditions(data):
            found.append(f"{guided}, but the model is not conditional; set it to 1")
        elif options.guidance != 1 and not self.network.dropped:
            found.append(f"{guided} needs model.network.label_dropout above 0; set guidance to 1")
        return found
