"""A student that starts from, or imitates, a trained diffusion run of any objective.

Whatever the run was trained to predict, its network tells which image y a noisy x = y + sigma n holds:
`DenoisingObjective.image_in`, called D here. A student has the same parametrisation, and may have the same
network, so that it starts as its teacher. D(x; sigma) tends to x as sigma tends to 0, which is the boundary
condition of a consistency function (Song et al. 2023, eq. 5).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL
from sfumato.core.config import Config
from sfumato.core.family import Frozen, Nets
from sfumato.core.pretrained import ModelCard, Pretrained
from sfumato.core.stored import Weights
from sfumato.families import config_class
from sfumato.families.diffusion.guidance.agreement import disagreements, model_of
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import DenoisingObjective, Model, Objective, ObjectiveConfig
from sfumato.families.diffusion.trajectory.noise_levels import LATENT_STD, PIXEL_STD, noise_scale, sigma_range

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Given

FIELD = "model.objective.teacher"
NAME = "teacher"
"""Of the frozen network among the family's networks."""


class TaughtConfig(ObjectiveConfig, ABC):
    """Settings of every objective with a teacher."""

    teacher: Pretrained = Field(description="A trained diffusion run of the same data, of any objective.")
    start: Literal["teacher", "fresh"] = Field(
        "teacher",
        description="Weights at the start: the teacher's, which needs its network, or fresh ones.",
    )
    sigma_min: float | None = Field(
        None,
        gt=0,
        description="Least noise level, of the noise over the image; null means 0.002 for pixels and 0.004 "
        "on latents.",
    )
    sigma_max: float | None = Field(
        None,
        gt=0,
        description="Noise level from which one step leads to an image; null means 80 for pixels and 160 on "
        "latents, or the teacher's largest if that is less.",
    )

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        low, high = sigma_range(self.sigma_min, self.sigma_max)
        if low >= high:
            raise ValueError(f"sigma_min: {low:g} is not below sigma_max={high:g}")
        return self

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """The first reason why the teacher cannot teach this model."""
        return list(islice(self._reasons(own, data), 1))

    def guidance_weight(self) -> float:
        """Of the teacher's guidance; 1 if it is not guided."""
        return float(getattr(self, "guidance", 1.0))

    @classmethod
    def tiny_teacher(cls) -> Pretrained:
        """A tiny EDM model of 1x8x8 images without classes, with random weights."""
        config = {
            "family": "diffusion",
            "network": {"channels": [8, 16], "head_dim": 8, "norm_groups": 4},
            "objective": {"kind": "edm"},
        }
        card = ModelCard(family="diffusion", config=config, data=DataSpec(1, 8, 8))
        return Pretrained(network="ema", model=card)

    def _reasons(self, own: Model, data: DataSpec) -> Iterator[str]:
        yield from disagreements(self.teacher, FIELD, "teacher", own, data, in_units=False)
        if self.teacher.model is None:
            return
        other, named = model_of(self.teacher, FIELD), f"{FIELD}.run: {self.teacher.source[1]!r}"
        others_data = self.teacher.model.data
        if not isinstance(other.objective.build(), DenoisingObjective):
            yield f"{named} is trained by {other.objective.kind}, which no denoiser can be read from"
        if bool(own.conditions(data)) != bool(other.conditions(others_data)):
            yield f"{named} takes classes or texts where this model does not; give both the same condition"
        if self.start == "teacher" and own.pretrained is not None:
            yield "model.pretrained: the weights come from objective.teacher; leave it out, or start=fresh"
        if self.start == "teacher" and not own.network.has_weights_of(other.network):
            yield (
                f"model.network: differs from that of {self.teacher.source[1]!r}, whose weights it is to "
                "start from; repeat its settings (base: the teacher's recipe), or set objective.start=fresh"
            )
        if self.guidance_weight() != 1 and not other.label_dropout(others_data):
            yield (
                f"model.objective.guidance: {named} was trained without dropping labels, so it cannot be "
                "guided; set guidance to 1"
            )
        if self.sigma_max is not None and self.sigma_max > (most := other.objective.build().highest()):  # type: ignore[attr-defined]
            yield f"model.objective.sigma_max: {self.sigma_max:g} is above the teacher's largest, {most:.4g}"


class Taught(Objective):
    """An objective whose network is read as its teacher's is."""

    def __init__(self, config: TaughtConfig, *, latents: bool) -> None:
        opened = config.teacher.open(config_class)
        model = model_of(config.teacher, FIELD)
        denoiser = model.objective.build(latents=latents)
        assert isinstance(denoiser, DenoisingObjective), "checked among the problems"
        self.denoiser = denoiser
        self.outputs = denoiser.outputs
        self.sigma_data = LATENT_STD if latents else _std(model.objective)
        scale = noise_scale(self.sigma_data, latents=latents)
        least, most = sigma_range(config.sigma_min, config.sigma_max, scale)
        self.least, self.most = least, min(most, denoiser.highest())
        self.network_config = model.network
        self.frozen = Frozen(build=opened.build, weights=opened.weights)
        self._starts = config.start == "teacher"
        self.changes = denoiser.changes if self._starts else 0  # the network is the teacher's
        self._weight = config.guidance_weight()
        self._null = opened.data.num_classes if LABEL in model.conditions(opened.data) else None

    def weights(self) -> Weights | None:
        """The teacher's, unless the student starts afresh."""
        return self.frozen.weights if self._starts else None

    def denoised(self, network: nn.Module, x_BCHW: Tensor, sigma_B: Tensor, given: Given | None) -> Tensor:
        """D(x; sigma) of a student, [B, C, H, W]."""
        return self.denoiser.image_in(lambda x, t: predict(network, x, t, given), x_BCHW, sigma_B)

    def taught(self, nets: Nets, x_BCHW: Tensor, sigma_B: Tensor, given: Given | None) -> Tensor:
        """D(x; sigma) of the teacher, guided away from its null class, [B, C, H, W]."""
        image_BCHW = self.denoised(nets[NAME], x_BCHW, sigma_B, given)
        if self._weight == 1 or not isinstance(given, Tensor):
            return image_BCHW
        assert self._null is not None, "it takes classes"
        null_B = given.new_full(given.shape, self._null)
        plain_BCHW = self.denoised(nets[NAME], x_BCHW, sigma_B, null_B)
        return plain_BCHW + self._weight * (image_BCHW - plain_BCHW)


class GuidedTeacher(Config):
    """The setting of objectives that run their teacher."""

    guidance: float = Field(
        1.0,
        ge=0,
        description="Classifier-free guidance of the teacher, which the student has built in; 1 is the plain "
        "teacher, any other value costs it a second evaluation.",
    )


def _std(objective: ObjectiveConfig) -> float:
    """sigma_data of pixels, as the teacher's objective knows it."""
    found: float | None = getattr(objective, "sigma_data", None)
    return PIXEL_STD if found is None else found
