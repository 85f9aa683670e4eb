"""The `model:` part of a recipe for the flow family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families.flow.bijection import Decoding
from sfumato.families.flow.dequantization import DEQUANTIZATIONS, Dequantization
from sfumato.families.flow.dequantization.uniform import UniformConfig
from sfumato.families.flow.networks import NETWORKS, NetworkConfig
from sfumato.families.flow.networks.glow import GlowConfig
from sfumato.text.config import TextConfig
from sfumato.text.encoders import ENCODERS
from sfumato.text.pooled import pooled_problems


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
        small = GlowConfig(levels=1, steps=1, channels=8)
        found["text"] = cls(network=small, text=TextConfig(encoders=(ENCODERS.find("joint").tiny(),)))
        return found | {
            name: cls(network=small, dequantization=DEQUANTIZATIONS.find(name).tiny())
            for name in DEQUANTIZATIONS.names()
            if name != DEQUANTIZATIONS.default
        }

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = self.network.problems(data)
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
