"""The `model:` part of a recipe for the vae family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import Pretrained
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.core.stored import StageSpec
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.latents import LATENTS, LatentConfig, Parts
from sfumato.families.vae.latents.gaussian import GaussianLatent
from sfumato.families.vae.perceptual import PERCEPTUALS, PerceptualConfig
from sfumato.families.vae.sampling import SamplingConfig
from sfumato.families.vae.sharpening import AdversarialConfig, Sharpening
from sfumato.text.config import TextConfig
from sfumato.text.encoders import ENCODERS
from sfumato.text.pooled import pooled_problems


class VaeConfig(FamilyConfig):
    """Autoencoders: Gaussian (samples), KL and quantised (first stages of other models)."""

    family: Literal["vae"] = Field("vae", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto",
        description="What a Gaussian VAE is conditioned on; auto means class if the data has classes. "
        "First stages are never conditioned.",
    )
    text: TextConfig | None = Field(
        None, description="Condition on pooled texts instead of classes; the latent must be gaussian_text."
    )
    latent: Annotated[LatentConfig, LATENTS] = Field(
        GaussianLatent(),
        description="The latents, which decide the kind of autoencoder.",
    )
    network: NetworkConfig = Field(NetworkConfig(), description="Size of encoder and decoder.")
    adversarial: AdversarialConfig | None = Field(
        None, description="A discriminator of the reconstructions of a first stage; none by default."
    )
    perceptual: Annotated[PerceptualConfig, PERCEPTUALS] | None = Field(
        None, description="A perceptual distance in the loss of a first stage; none by default."
    )
    perceptual_weight: float = Field(1.0, ge=0, description="Weight of the perceptual distance.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights, used after training.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The text of an image; or its class, unless there is none; first stages take none."""
        if self.text is not None:
            return (self.text.condition(negative=False),)
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes and self.latent.has_prior else ()

    def samples(self, data: DataSpec) -> bool:
        """Only latents with a prior, those of the Gaussian VAE, can be drawn."""
        return self.latent.has_prior

    @classmethod
    def of_library(cls, source: Config) -> Mapping[str, Any]:
        """An autoencoder of diffusers."""
        from sfumato.families.vae.latents.library import of_folder

        assert isinstance(source, Pretrained)
        return of_folder(source)

    def as_first_stage(self, data: DataSpec) -> StageSpec | None:
        """The averaged network of a KL or a quantised autoencoder."""
        return self.latent.stage(self.network, data)

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        classes = data.num_classes if LABEL in self.conditions(data) else 0
        sharpening = Sharpening(self.adversarial, self.perceptual, self.perceptual_weight)
        parts = Parts(self.network, self.optimizer, self.ema, classes, sharpening, self.text)
        return self.latent.build(parts, data)

    @classmethod
    def tiny(cls) -> Self:
        """A conditional Gaussian VAE with two levels of 4 and 8 channels and two latent numbers."""
        return cls(network=NetworkConfig(channels=(4, 8), norm_groups=2), latent=GaussianLatent.tiny())

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Each latent with each of its settings that changes the network or the loss."""
        from sfumato.families.vae.variants import deep, latents, sharpened

        tiny = cls.tiny()
        free = tiny.model_copy(update={"condition": "none"})
        text = TextConfig(encoders=(ENCODERS.find("joint").tiny(),))
        return {
            "tiny": tiny,
            **{
                name: (free if latent.uses_network else cls(condition="none")).model_copy(
                    update={"latent": latent}
                )
                if not latent.takes_texts
                else tiny.model_copy(update={"latent": latent, "text": text})
                for name, latent in latents().items()
            },
            **{name: free.model_copy(update=parts) for name, parts in (sharpened() | deep()).items()},
        }

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        found = []
        if self.latent.uses_network:
            found += self._network_problems(data)
        elif self.network != NetworkConfig():
            found.append(
                f"model.network: has no effect on latent.kind={self.latent.kind}, which has its own; "
                "leave it out"
            )
        found = found or self.latent.problems(self.network, data)
        found += self._sharpening_problems(data)
        if self.text is not None or self.latent.takes_texts:
            return found + self._text_problems(data)
        if self.condition == "class" and not self.latent.has_prior:
            found.append(
                f"model.condition: 'class' has no effect on latent.kind={self.latent.kind}; leave it out"
            )
        elif self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found

    def amount_problems(self, data: DataSpec, *, batch: int, samples: int | None) -> list[str]:
        """Codes that the data cannot fill."""
        return [] if samples is None else self.latent.sample_problems(self.network, data, samples)

    def _sharpening_problems(self, data: DataSpec) -> list[str]:
        given = {"adversarial": self.adversarial, "perceptual": self.perceptual}
        chosen = {name: part for name, part in given.items() if part is not None}
        if not self.latent.sharpens:
            return [
                f"model.{name}: has no effect on latent.kind={self.latent.kind}; leave it out"
                for name in chosen
            ]
        found = [line for part in chosen.values() for line in part.problems(data)]
        if self.perceptual is None and self.perceptual_weight != 1:
            found.append("model.perceptual_weight: has no effect without model.perceptual; leave it out")
        return found

    def _network_problems(self, data: DataSpec) -> list[str]:
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
        return found

    def _text_problems(self, data: DataSpec) -> list[str]:
        if self.text is None:
            return [f"model.latent: {self.latent.kind} is a model of texts; give model.text"]
        if not self.latent.takes_texts:
            return [f"model.latent: {self.latent.kind} takes no texts; use gaussian_text"]
        found = pooled_problems(self.text, self.text.problems(data))
        return found + self.text.clashes(self.condition)
