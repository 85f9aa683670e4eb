"""Autoguidance's other network: a smaller or less trained model of the same data (Karras et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import Frozen
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.pretrained import Pretrained, card_config
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import ObjectiveConfig

NAME = "guide"
"""Of the frozen network among the family's networks."""
FIELD = "model.sampling.guide"


@dataclass(frozen=True, slots=True)
class Guide:
    """The network, ready to be built, and whether it takes classes."""

    frozen: Frozen
    conditional: bool

    @classmethod
    def open(cls, guide: Pretrained) -> Guide:
        """Raises ConfigError if it has not been looked up."""
        opened = guide.open(config_class)
        assert guide.model is not None, "opened"
        takes = card_config(guide.model, config_class, FIELD).conditions(opened.data)
        return cls(Frozen(build=opened.build, weights=opened.weights), bool(takes))

    def output(self, network: nn.Module, x_NCHW: Tensor, t: Tensor, labels_N: Tensor | None) -> Tensor:
        """Its output [N, C, H, W], for the model's own labels."""
        return predict(network, x_NCHW, t, labels_N if self.conditional else None)


class Model(Protocol):
    """The parts of a diffusion model's configuration in which a guide must agree."""

    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def first_stage(self) -> FirstStageConfig | None: ...
    @property
    def latent_scale(self) -> float | None: ...
    def conditions(self, data: DataSpec) -> tuple[Condition, ...]: ...


def guide_problems(guide: Pretrained, own: Model, data: DataSpec) -> list[str]:
    """The first reason why it cannot guide a model of `own` configuration; none before it is looked up."""
    return list(islice(_reasons(guide, own, data), 1))


def _reasons(guide: Pretrained, own: Model, data: DataSpec) -> Iterator[str]:
    if guide.source[0] != "run":
        yield f"{FIELD}: got a {guide.source[0]}, but a guide is a trained run; set {FIELD}.run"
        return
    if guide.model is None:
        return
    named = f"{FIELD}.run: {guide.source[1]!r}"
    try:
        other = card_config(guide.model, config_class, f"{FIELD}.model.config")
    except ConfigError as error:
        yield from error.problems
        return
    if not isinstance(other, type(own)):
        yield f"{named} is a {guide.model.family} model; name a run of family diffusion"
        return
    for what, theirs, ours in _pairs(guide.model.data, other, own, data):
        if theirs != ours:
            yield f"{named} has {what} {theirs}, this model {ours}; a guide must agree in it"
    if other.conditions(guide.model.data) and not own.conditions(data):
        yield f"{named} takes classes, and this model does not; name a run without"
    if own.first_stage is not None and own.latent_scale is None:
        yield f"{FIELD}: two models of latents need one latent_scale; set the same in both recipes"


def _pairs(
    others_data: DataSpec, other: Model, own: Model, data: DataSpec
) -> Iterator[tuple[str, object, object]]:
    """What must be equal, named: the guide's, and the model's own."""
    theirs, ours = ("x".join(map(str, spec.shape)) for spec in (others_data, data))
    yield "images of", theirs, ours
    yield "first_stage", _digest(other.first_stage), _digest(own.first_stage)
    yield "latent_scale", other.latent_scale, own.latent_scale
    yield "objective", other.objective.kind, own.objective.kind
    for name in own.objective.output_units:
        yield f"objective.{name}", getattr(other.objective, name), getattr(own.objective, name)
    if other.conditions(others_data) and own.conditions(data):
        yield "classes", others_data.classes, data.classes


def _digest(stage: FirstStageConfig | None) -> str | None:
    return None if stage is None else stage.digest
