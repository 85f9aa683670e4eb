"""The `model:` part of a recipe for the vae family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.core.stored import StageSpec
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.latents import LATENTS, LatentConfig, Parts
from sfumato.families.vae.latents.gaussian import GaussianLatent
from sfumato.families.vae.sampling import SamplingConfig


class VaeConfig(FamilyConfig):
    """Autoencoders: Gaussian (samples), KL and quantised (first stages of other models)."""

    family: Literal["vae"] = Field("vae", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto",
        description="What a Gaussian VAE is conditioned on; auto means class if the data has classes. "
        "First stages are never conditioned.",
    )
    latent: Annotated[LatentConfig, LATENTS] = Field(
        GaussianLatent(),
        description="The latents, which decide the kind of autoencoder.",
    )
    network: NetworkConfig = Field(NetworkConfig(), description="Size of encoder and decoder.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights, used after training.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe or the data has none; first stages take none."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes and self.latent.has_prior else ()

    def samples(self, data: DataSpec) -> bool:
        """Only latents with a prior, those of the Gaussian VAE, can be drawn."""
        return self.latent.has_prior

    def as_first_stage(self, data: DataSpec) -> StageSpec | None:
        """The averaged network of a KL or a quantised autoencoder."""
        return self.latent.stage(self.network, data)

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        classes = data.num_classes if self.conditions(data) else 0
        return self.latent.build(Parts(self.network, self.optimizer, self.ema, classes), data)

    @classmethod
    def tiny(cls) -> Self:
        """A conditional Gaussian VAE with two levels of 4 and 8 channels and two latent numbers."""
        return cls(network=NetworkConfig(channels=(4, 8), norm_groups=2), latent=GaussianLatent.tiny())

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Each latent with each of its settings that changes the network or the loss."""
        from sfumato.families.vae.variants import latents

        tiny = cls.tiny()
        free = tiny.model_copy(update={"condition": "none"})
        return {
            "tiny": tiny,
            **{name: free.model_copy(update={"latent": latent}) for name, latent in latents().items()},
        }

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = []
        factor = self.network.factor
        for name, side in (("height", data.height), ("width", data.width)):
            if side % factor:
                near = max(1, round(side / factor)) * factor
                found.append(
                    f"model.network.channels: {len(self.network.channels)} levels need a {name} that is a "
                    f"multiple of {factor}, got {side}; use a {name} of {near}, or "
                    f"{(side & -side).bit_length()} level(s)"
                )
        if self.condition == "class" and not self.latent.has_prior:
            found.append(
                f"model.condition: 'class' has no effect on latent.kind={self.latent.kind}; leave it out"
            )
        elif self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found
