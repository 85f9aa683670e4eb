"""The `model:` part of a recipe for the autoregressive family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.first_stage import FirstStageConfig, OpenStage
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import ModelCard, Pretrained, StoredModelCard
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.autoregressive.networks import NETWORKS, PREFIX, NetworkConfig, Parts
from sfumato.families.autoregressive.networks.pixelcnn import PixelCnnConfig
from sfumato.families.autoregressive.outputs import OUTPUTS
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.text.config import TextConfig
from sfumato.text.encoders import ENCODERS


class AutoregressiveConfig(FamilyConfig):
    """Models pixels, or codes of a first stage, one after the other."""

    family: Literal["autoregressive"] = Field("autoregressive", description="Selects this family.")
    condition: Literal["auto", "class", "none"] = Field(
        "auto", description="What generation is conditioned on; auto means class if the data has classes."
    )
    text: TextConfig | None = Field(
        None, description="Condition on texts instead of classes; the network must be text_transformer."
    )
    network: Annotated[NetworkConfig, NETWORKS] = Field(
        PixelCnnConfig(), description="Which model, and its size."
    )
    first_stage: FirstStageConfig | None = Field(
        None, description="The quantised autoencoder whose codes the transformer models."
    )
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=5_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(EmaSchedule(), description="Average of the weights; it generates the samples.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Defaults of sampling.")

    completion: bool = Field(
        False,
        description="Take images to complete, as the condition `prefix`; sampling.keep says how much of them "
        "is kept. Training is the same.",
    )
    draft: Pretrained | None = Field(
        None,
        description="A smaller transformer of the same codes, from another run; with decoding=speculative it "
        "proposes the codes that this one checks. Training does not use it.",
    )

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The text of an image; or its class, unless there is none; images to complete, if any."""
        if self.text is not None:
            return (self.text.condition(negative=True),)
        classes = self.condition == "class" or (self.condition == "auto" and data.num_classes > 0)
        prefix = Condition(PREFIX, "image", "image", data.shape)
        return ((LABEL,) if classes else ()) + ((prefix,) if self.completion else ())

    def couples_rows(self) -> bool:
        """Dropout draws for all rows at once."""
        return self.network.couples_rows()

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        classes = data.num_classes if LABEL in self.conditions(data) else 0
        stage = None if self.first_stage is None else self.first_stage.open(config_class, data)
        draft = None if self.draft is None else self.draft.open(config_class)
        parts = Parts(self.optimizer, self.ema, classes, stage, draft, self.text)
        return self.network.build(parts, data)

    @classmethod
    def tiny(cls) -> Self:
        """A PixelCNN of two blocks of 4 channels with a mixture of two logistics."""
        return cls(network=PixelCnnConfig.tiny())

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Each distribution of pixels, and the models of codes on a first stage with its initial weights."""
        small = PixelCnnConfig.tiny()
        grey, binary = OUTPUTS.find("categorical").tiny(), OUTPUTS.make("categorical", levels=2)
        found = {
            "tiny": cls.tiny(),
            "categorical": cls(
                network=small.model_copy(update={"output": grey}),
                sampling=SamplingConfig(temperature=0.9, top_k=5),
            ),
            "binary": cls(network=small.model_copy(update={"output": binary}), condition="none"),
        }
        found |= {
            name: cls(network=small.model_copy(update={"output": OUTPUTS.find(name).tiny()}))
            for name in OUTPUTS.names()
            if name not in ("categorical", OUTPUTS.default)
        }
        others = [name for name in NETWORKS.names() if name != NETWORKS.default]
        found |= {name: cls._with_network(NETWORKS.find(name)) for name in others}
        return found | {"speculative": cls._speculative()}

    @classmethod
    def _speculative(cls) -> Self:
        """A transformer with a draft, which has its initial weights."""
        model = cls._with_network(NETWORKS.find("transformer"))
        small = {**model.model_dump(mode="json"), "condition": "class"}
        data = DataSpec(channels=1, height=8, width=8, classes=("zero", "one", "two"))
        card = ModelCard(family="autoregressive", config=small, data=data)
        options = SamplingConfig(decoding="speculative", draft_length=3)
        # The draft knows three classes, whatever the data has; without labels that is all the same.
        return model.model_copy(update={"draft": Pretrained(model=card), "sampling": options})

    @classmethod
    def _with_network(cls, kind: type[NetworkConfig]) -> Self:
        network = kind.tiny()
        return cls(
            network=network,
            text=TextConfig(encoders=(ENCODERS.find("joint").tiny(),)) if kind.takes_texts else None,
            first_stage=FirstStageConfig(model=_TINY_SCALES if kind.of_scales else _TINY_STAGE)
            if kind.of_codes or kind.of_latents
            else None,
            sampling=(
                SamplingConfig(guidance=1.5, top_k=8 if kind.of_codes else 0)
                if network.dropped or kind.takes_texts
                else SamplingConfig()
            ),
        )

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        condition = self._label_problems(data) if self.text is None else self._text_problems(self.text, data)
        if self.network.takes_texts and self.text is None:
            condition = [f"model.network: {self.network.kind} is a model of texts; give model.text"]
        found = condition + self.network.problems(data, self.sampling)
        if self.network.of_codes or self.network.of_latents:
            stage = self.first_stage or FirstStageConfig()
            unfit = stage.problems(data, config_class, codes=self.network.of_codes)
            found += unfit or self.network.stage_problems(stage.open(config_class, data).spec)
        elif self.first_stage is not None:
            found.append(
                f"model.first_stage: has no effect on network.kind={self.network.kind}; leave it out"
            )
        return found + self._completion_problems() + self._draft_problems(data) + self._idle_options()

    def _idle_options(self) -> list[str]:
        """Sampling options that this network does not have."""
        network, sampling, found = self.network, self.sampling, []
        if sampling.cache != "static" and not (network.caches and sampling.remembers):
            where = f"network.kind={network.kind} with decoding={sampling.decoding}"
            found.append(f"model.sampling.cache: {sampling.cache} has no effect on {where}; leave it out")
        if sampling.guidance_schedule != "constant" and not (network.caches or network.takes_texts):
            where = f"network.kind={network.kind}; leave it out"
            found.append(f"model.sampling.guidance_schedule: has no effect on {where}")
        return found

    def _completion_problems(self) -> list[str]:
        if self.network.takes_texts:
            unlike = self.completion or self.sampling.decoding not in ("cache", "speculative")
            what = "model.completion and model.sampling.decoding have no effect on"
            return [f"{what} {self.network.kind}; leave them out"] if unlike else []
        if self.completion and not self.network.completes:
            return [f"model.completion: a {self.network.kind} does not draw in raster order; set it to false"]
        if self.sampling.keep and not self.completion:
            return [f"model.sampling.keep: {self.sampling.keep:g} needs model.completion=true"]
        return []

    def _draft_problems(self, data: DataSpec) -> list[str]:
        """A draft that is missing, has no effect, or has another tokenizer."""
        if self.draft is None:
            asks = self.sampling.decoding == "speculative"
            fix = "needs model.draft, a smaller transformer of the same codes; use decoding=cache"
            return [f"model.sampling.decoding: speculative {fix}"] if asks else []
        if not self.network.of_codes or self.first_stage is None:
            return [f"model.draft: has no effect on network.kind={self.network.kind}; leave it out"]
        try:
            family, stage = self.draft.open(config_class).family, self.first_stage.open(config_class)
        except ConfigError as error:
            return [f"model.draft.{line}" for line in error.problems]
        theirs: OpenStage | None = getattr(family, "stage", None)
        if theirs is None:
            return ["model.draft: is no transformer of codes; name a run of family autoregressive that is"]
        one, two = ((each.stored, each.spec.num_codes, each.spec.latent) for each in (theirs, stage))
        same = one == two
        return (
            [] if same else ["model.draft: has another tokenizer; train it with the same model.first_stage"]
        )

    def _text_problems(self, text: TextConfig, data: DataSpec) -> list[str]:
        found = text.problems(data)
        if not self.network.takes_texts:
            found.append(f"model.network: {self.network.kind} takes no texts; use text_transformer")
        elif not found and not text.shape().tokens:
            found.append("model.text: the transformer sees tokens; let an encoder have uses=both or states")
        return found + text.clashes(self.condition, self.sampling.guidance)

    def _label_problems(self, data: DataSpec) -> list[str]:
        if self.condition == "class" and not data.num_classes:
            return ["model.condition: 'class', but the data has no classes; set model.condition=none"]
        if self.sampling.guidance == 1:
            return []
        guided = f"model.sampling.guidance: {self.sampling.guidance:g}"
        if self.network.dropped is None:
            return [f"{guided}, but a {self.network.kind} is not trained for guidance; set it to 1"]
        if LABEL not in self.conditions(data):
            return [f"{guided}, but the model is not conditional; set it to 1"]
        if not self.network.dropped:
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

_TINY_SCALES = StoredModelCard(
    family="vae",
    config={
        "family": "vae",
        "network": {"channels": [4, 8], "norm_groups": 2},
        "latent": {"kind": "vq_scales", "channels": 4, "size": 16, "scales": [1, 2, 4], "convolutions": 2},
    },
    data=DataSpec(channels=1, height=8, width=8),
)
