"""The `model:` part of a recipe for the vae family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.layers.group_norm import check_widths

if TYPE_CHECKING:
    from sfumato.core.first_stage import StageSpec


class NetworkConfig(Config):
    """Size of encoder and decoder (diffusers' `Encoder` and `Decoder`, as in latent diffusion)."""

    channels: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        description="Channels of each level; every level after the first halves the side.",
    )
    layers_per_block: int = Field(
        1, ge=1, description="Residual blocks of a level (the decoder has one more)."
    )
    mid_attention: bool = Field(False, description="Self-attention at the lowest resolution.")
    norm_groups: int = Field(8, ge=1, description="Groups of every group normalisation.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_widths(self.channels, self.norm_groups)
        return self

    @property
    def factor(self) -> int:
        """How many pixels a side of the lowest resolution stands for."""
        return 1 << (len(self.channels) - 1)


class BernoulliConfig(Config):
    """Black or white pixels."""

    kind: Literal["bernoulli"] = Field("bernoulli", description="Selects this likelihood.")
    binarization: Literal["dynamic", "threshold"] = Field(
        "dynamic",
        description="What makes a grey pixel white: chance in proportion to its value, anew each time "
        "(Salakhutdinov & Murray 2008), or being above the middle.",
    )


class LogisticConfig(Config):
    """256 levels under a discretised logistic distribution."""

    kind: Literal["logistic"] = Field("logistic", description="Selects this likelihood.")
    scale: Literal["pixel", "channel"] = Field(
        "channel",
        description="Whether the decoder gives each pixel its own scale, or one is learned a channel.",
    )


class GaussianLatent(Config):
    """A vector with a standard normal prior: a VAE that samples (Kingma & Welling 2014)."""

    kind: Literal["gaussian"] = Field("gaussian", description="Selects the VAE.")
    dim: int = Field(32, ge=1, description="Numbers in the vector.")
    beta: float = Field(1.0, ge=0, description="Weight of the KL term (Higgins et al. 2017); 1 is the ELBO.")
    free_bits: float = Field(
        0.0,
        ge=0,
        description="Nats of each latent number that cost nothing in training (Kingma et al. 2016).",
    )
    warmup_images: int = Field(
        0, ge=0, description="Images over which the weight of the KL term rises from 0."
    )
    likelihood: Annotated[BernoulliConfig | LogisticConfig, Field(discriminator="kind")] = Field(
        LogisticConfig(), description="The distribution of pixels given the vector."
    )
    importance_samples: int = Field(
        1,
        ge=1,
        description="Draws in `bits_per_dim`: 1 gives the ELBO, more the importance-weighted bound "
        "(Burda et al. 2016). Training is not affected.",
    )


class KlLatent(Config):
    """A grid of vectors, hardly regularised: the KL autoencoder of latent diffusion (Rombach et al. 2022)."""

    kind: Literal["kl"] = Field("kl", description="Selects the KL autoencoder.")
    channels: int = Field(4, ge=1, description="Numbers at each place of the grid.")
    kl_weight: float = Field(
        1e-6, ge=0, description="Weight of the KL term, both terms summed over an image."
    )
    reconstruction: Literal["l1", "l2"] = Field("l1", description="Distance of images.")


class LearnedCodebook(Config):
    """Codes that are a learned linear map of fixed random ones (SimVQ, Zhu et al. 2024)."""

    kind: Literal["codebook"] = Field("codebook", description="Selects a learned codebook.")
    size: int = Field(512, ge=2, description="Number of codes.")
    commitment: float = Field(
        0.25, ge=0, description="Weight of the encoder's distance from its codes (van den Oord et al. 2017)."
    )

    @property
    def codes(self) -> int:
        return self.size


class ScalarQuantizer(Config):
    """Each channel rounded to a few levels: no codebook to learn (FSQ, Mentzer et al. 2024)."""

    kind: Literal["fsq"] = Field("fsq", description="Selects finite scalar quantisation.")
    levels: tuple[int, ...] = Field(
        (8, 8, 8),
        min_length=1,
        description="Levels of each channel, 3 or more; their product is the number of codes.",
    )

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if few := [level for level in self.levels if level < 3]:
            raise ValueError(f"levels: got {few[0]}, the least is 3")
        return self

    @property
    def codes(self) -> int:
        return math.prod(self.levels)


class VqLatent(Config):
    """A grid of codes: a quantised autoencoder, VQ-VAE (van den Oord et al. 2017)."""

    kind: Literal["vq"] = Field("vq", description="Selects the quantised autoencoder.")
    channels: int = Field(8, ge=1, description="Numbers at each place of the grid before quantisation.")
    quantizer: Annotated[LearnedCodebook | ScalarQuantizer, Field(discriminator="kind")] = Field(
        LearnedCodebook(), description="How a place of the grid becomes one of finitely many codes."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(1.0, gt=0, description="Standard deviation of the latent vectors.")
    pixels: Literal["mean", "draw"] = Field(
        "mean", description="Show the mean of the pixels' distribution, or draw from it."
    )


class VaeConfig(FamilyConfig):
    """Autoencoders: Gaussian (samples), KL and quantised (first stages of other models)."""

    family: Literal["vae"] = Field("vae", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto",
        description="What a Gaussian VAE is conditioned on; auto means class where the data has classes. "
        "First stages are never conditioned.",
    )
    latent: Annotated[GaussianLatent | KlLatent | VqLatent, Field(discriminator="kind")] = Field(
        GaussianLatent(), description="What lies between encoder and decoder: which autoencoder it is."
    )
    network: NetworkConfig = Field(NetworkConfig(), description="Size of encoder and decoder.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights, which is what is used.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe or the data has none; first stages take none."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes and self.latent.kind == "gaussian" else ()

    def samples(self, data: DataSpec) -> bool:
        """Only the Gaussian VAE has a prior to draw from."""
        return self.latent.kind == "gaussian"

    def as_first_stage(self, data: DataSpec) -> StageSpec | None:
        """The averaged network of a KL or a quantised autoencoder."""
        from sfumato.families.vae.stages import stage_spec  # which imports this module

        return stage_spec(self, data)

    def build(self, data: DataSpec) -> Family:
        """The family for images of this kind."""
        from sfumato.families.vae.gaussian import GaussianVae  # loads diffusers
        from sfumato.families.vae.kl import KlAutoencoderFamily
        from sfumato.families.vae.vq import VqAutoencoderFamily

        if self.latent.kind == "gaussian":
            return GaussianVae(self, self.latent, data)
        if self.latent.kind == "kl":
            return KlAutoencoderFamily(self, self.latent, data)
        return VqAutoencoderFamily(self, self.latent, data)

    @classmethod
    def tiny(cls) -> Self:
        """A conditional Gaussian VAE with two levels of 4 and 8 channels and two latent numbers."""
        return cls(network=NetworkConfig(channels=(4, 8), norm_groups=2), latent=GaussianLatent(dim=2))

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Each latent with each of its settings that changes the network or the loss."""
        unusual = GaussianLatent(
            dim=2, free_bits=0.1, warmup_images=1_000, likelihood=BernoulliConfig(), importance_samples=3
        )
        latents: dict[str, GaussianLatent | KlLatent | VqLatent] = {
            "bernoulli": unusual,
            "pixel-scale": GaussianLatent(dim=2, likelihood=LogisticConfig(scale="pixel")),
            "kl": KlLatent(channels=2),
            "vq": VqLatent(channels=4, quantizer=LearnedCodebook(size=16)),
            "fsq": VqLatent(channels=4, quantizer=ScalarQuantizer(levels=(5, 3))),
        }
        tiny = cls.tiny()
        free = tiny.model_copy(update={"condition": "none"})
        return {
            "tiny": tiny,
            **{name: free.model_copy(update={"latent": latent}) for name, latent in latents.items()},
        }

    def problems(self, data: DataSpec) -> list[str]:
        """What makes this configuration impossible for this data, one line each with the nearest mend."""
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
        if self.condition == "class" and self.latent.kind != "gaussian":
            found.append(
                f"model.condition: 'class' has no effect on latent.kind={self.latent.kind}; leave it out"
            )
        elif self.condition == "class" and not data.num_classes:
            found.append("model.condition: 'class', but the data has no classes; set model.condition=none")
        return found
