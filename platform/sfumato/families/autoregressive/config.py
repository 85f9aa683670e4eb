"""The `model:` part of a recipe for the autoregressive family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import StoredModelCard
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.families import config_class

DEFAULT_LABEL_DROPOUT = 0.1


class CategoricalConfig(Config):
    """A free probability for each level; grey images only."""

    kind: Literal["categorical"] = Field("categorical", description="Selects this distribution.")
    levels: int = Field(
        256, ge=2, le=256, description="Levels that 0..255 are cut into; 2 is black and white."
    )
    binarization: Literal["dynamic", "threshold"] = Field(
        "dynamic",
        description="With 2 levels, what makes a grey pixel white: chance in proportion to its value, anew "
        "each time (Salakhutdinov & Murray 2008), or being above the middle.",
    )

    @model_validator(mode="after")
    def _binarization_has_effect(self) -> Self:
        if self.levels != 2 and self.binarization != "dynamic":
            raise ValueError(
                f"binarization: {self.binarization} has no effect on levels={self.levels}; leave it out, or "
                "set levels=2"
            )
        return self


class LogisticConfig(Config):
    """A mixture of discretised logistics over 256 levels (Salimans et al. 2017)."""

    kind: Literal["logistic"] = Field("logistic", description="Selects this distribution.")
    components: int = Field(5, ge=1, description="Components of the mixture.")


class PixelCnnConfig(Config):
    """Gated PixelCNN (van den Oord et al. 2016): pixels in raster order."""

    kind: Literal["pixelcnn"] = Field("pixelcnn", description="Selects the model of pixels.")
    width: int = Field(64, ge=1, description="Channels of both stacks.")
    layers: int = Field(8, ge=1, description="Gated blocks.")
    kernel: int = Field(3, ge=3, description="Side of the convolutions, odd.")
    head_width: int = Field(64, ge=1, description="Channels of the output layers.")
    output: Annotated[CategoricalConfig | LogisticConfig, Field(discriminator="kind")] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even; use {self.kernel + 1}")
        return self


class TransformerConfig(Config):
    """A decoder transformer over the codes of a frozen quantised autoencoder (Esser et al. 2021)."""

    kind: Literal["transformer"] = Field("transformer", description="Selects the model of codes.")
    width: int = Field(128, ge=1, description="Channels of the residual stream.")
    layers: int = Field(4, ge=1, description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width.")
    label_dropout: float = Field(
        DEFAULT_LABEL_DROPOUT,
        ge=0,
        lt=1,
        description="Share of labels that training drops, which guidance needs.",
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            near = max(1, round(self.width / self.heads)) * self.heads
            raise ValueError(
                f"width: {self.width} is no multiple of heads={self.heads}; the nearest is {near}"
            )
        return self


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(1.0, gt=0, description="Divides the logits: below 1 draws likelier values.")
    top_k: int = Field(0, ge=0, description="Draw from this many likeliest values alone; 0 is all of them.")
    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance weight of the transformer; 1 is the plain model."
    )


class AutoregressiveConfig(FamilyConfig):
    """Pixels one after the other, or codes of a first stage one after the other."""

    family: Literal["autoregressive"] = Field("autoregressive", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class where the data has classes."
    )
    network: Annotated[PixelCnnConfig | TransformerConfig, Field(discriminator="kind")] = Field(
        PixelCnnConfig(), description="Which model, and its size."
    )
    first_stage: FirstStageConfig | None = Field(
        None, description="The quantised autoencoder whose codes the transformer models."
    )
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights, which is what samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The class of an image, unless the recipe or the data has none."""
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        return (LABEL,) if classes else ()

    def build(self, data: DataSpec) -> Family:
        """The family for images of this kind."""
        from sfumato.families.autoregressive.codes import CodeTransformer  # loads torch modules
        from sfumato.families.autoregressive.pixels import PixelCnn

        if self.network.kind == "pixelcnn":
            return PixelCnn(self, self.network, data)
        assert self.first_stage is not None, "problems() asks for it"
        return CodeTransformer(self, self.network, self.first_stage.open(config_class), data)

    @classmethod
    def tiny(cls) -> Self:
        """A PixelCNN of two blocks of 4 channels with a mixture of two logistics."""
        return cls(
            network=PixelCnnConfig(width=4, layers=2, head_width=4, output=LogisticConfig(components=2))
        )

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Each distribution of pixels, and the transformer on a first stage with its initial weights."""
        small = PixelCnnConfig(width=4, layers=2, head_width=4)
        grey = small.model_copy(update={"output": CategoricalConfig(levels=16)})
        binary = small.model_copy(update={"output": CategoricalConfig(levels=2)})
        return {
            "tiny": cls.tiny(),
            "categorical": cls(network=grey, sampling=SamplingConfig(temperature=0.9, top_k=5)),
            "binary": cls(network=binary, condition="none"),
            "transformer": cls(
                network=TransformerConfig(width=8, layers=2, heads=2),
                first_stage=FirstStageConfig(model=_TINY_STAGE),
                sampling=SamplingConfig(guidance=1.5, top_k=8),
            ),
        }

    def problems(self, data: DataSpec) -> list[str]:
        """What makes this configuration impossible for this data, one line each with the nearest mend."""
        found = self._label_problems(data)
        if isinstance(self.network, TransformerConfig):
            stage = self.first_stage or FirstStageConfig()
            return found + stage.problems(data, config_class, codes=True)
        if self.first_stage is not None:
            found.append("model.first_stage: has no effect on network.kind=pixelcnn; leave it out")
        output = self.network.output
        if isinstance(output, CategoricalConfig) and data.channels > 1:
            found.append(
                f"model.network.output: categorical takes grey images, the data has {data.channels} "
                "channels; use model.network.output.kind=logistic"
            )
        changed = self.sampling.temperature != 1 or self.sampling.top_k
        if isinstance(output, LogisticConfig) and changed:
            found.append(
                "model.sampling: temperature and top_k have no effect on network.output.kind=logistic; "
                "leave them out, or use categorical"
            )
        return found

    def _label_problems(self, data: DataSpec) -> list[str]:
        if self.condition == "class" and not data.num_classes:
            return ["model.condition: 'class', but the data has no classes; set model.condition=none"]
        if self.sampling.guidance == 1:
            return []
        guided = f"model.sampling.guidance: {self.sampling.guidance:g}"
        if not isinstance(self.network, TransformerConfig):
            return [f"{guided}, but a PixelCNN is not trained for guidance; set it to 1"]
        if not self.conditions(data):
            return [f"{guided}, but the model is not conditional; set it to 1"]
        if not self.network.label_dropout:
            return [f"{guided} needs model.network.label_dropout above 0; set guidance to 1"]
        return []


_TINY_STAGE = StoredModelCard(
    family="vae",
    config={
        "family": "vae",
        "network": {"channels": [4, 8], "norm_groups": 2},
        "latent": {"kind": "vq", "channels": 4, "quantizer": {"kind": "codebook", "size": 16}},
    },
    data=DataSpec(channels=1, height=8, width=8),
)
