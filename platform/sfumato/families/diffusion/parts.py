"""What a diffusion model consists of, opened as its configuration names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL
from sfumato.core.family import Frozen, Nets
from sfumato.core.rng import Rng
from sfumato.families import config_class
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.alignment import Alignment, grid_of
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.guidance.labels import Conditioning, GivenInputs, GivenTexts, LabelDropout
from sfumato.families.diffusion.latent import LatentSpace
from sfumato.families.diffusion.objectives import Objective
from sfumato.text.condition import TextCondition
from sfumato.text.config import TextConfig


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one model; None for those that it does without."""

    config: DiffusionConfig
    data: DataSpec
    """Of what the network denoises: images, or latents."""
    conditional: bool
    """Whether the network sees classes."""
    objective: Objective
    labels: LabelDropout
    text: TextCondition | None
    space: LatentSpace | None
    alignment: Alignment | None

    @classmethod
    def of(cls, config: DiffusionConfig, data: DataSpec) -> Self:
        """Those of a model of images of this kind."""
        space, seen = None, data
        if config.first_stage is not None:
            stage = config.first_stage.open(config_class, data)
            by_channel = config.latent_norm == "channel"
            space = LatentSpace(stage, config.latent_scale, data, by_channel=by_channel)
            seen = space.data
        conditional = LABEL in config.conditions(seen)
        return cls(
            config=config,
            data=seen,
            conditional=conditional,
            objective=config.objective.build(latents=space is not None),
            labels=LabelDropout(seen.num_classes if conditional else None, config.label_dropout(seen)),
            text=None if config.text is None else _texts(config.text, config.adapter),
            space=space,
            alignment=None
            if config.alignment is None
            else Alignment(config.alignment, grid_of(config.network, seen)),
        )

    def conditioning(self) -> Conditioning:
        """What the network sees in training besides noisy images."""
        names = () if self.config.adapter is None else self.config.adapter.names
        if self.text is not None:
            return GivenTexts(self.text, names)
        return GivenInputs(self.labels, names) if names else self.labels

    @property
    def shown_by(self) -> Mapping[str, Frozen]:
        """The networks by which an adapter looks at its rows."""
        return {} if self.config.adapter is None else self.config.adapter.frozen()

    def look(
        self,
        nets: Nets,
        rng: Rng | None = None,
        text_dropped_B: Tensor | None = None,
        noise: float = 0.0,
        scale: float = 1.0,
    ) -> Look:
        """How an adapter looks at its rows: as images, or as their mean latents."""
        return Look(partial(self._seen, nets), self.data.shape, rng, text_dropped_B, noise, scale, nets)

    def clips(self, options: Any) -> bool:
        """Whether sampling clips the predicted images; latents have no bounds."""
        return self.space is None and (options.clip is None or bool(options.clip))

    def _seen(self, nets: Nets, image_BCHW: Tensor) -> Tensor:
        return image_BCHW if self.space is None else self.space.mean(nets, {"image": image_BCHW})


def _texts(text: TextConfig, adapter: AdapterConfig | None) -> TextCondition:
    """With the encoders inside of the network where the adapter reaches them."""
    if adapter is None:
        return TextCondition(text)
    return TextCondition(text, inside=adapter.reaches_encoders, new_word=adapter.new_word())
