"""In what another diffusion model must agree with this one to guide it or to teach it."""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.core.batch import DataSpec
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.pretrained import Pretrained, card_config
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion.objectives import Model


def model_of(reference: Pretrained, field: str) -> Model:
    """The configuration of a looked-up diffusion run. Raises ConfigError, naming `field`, for another."""
    assert reference.model is not None, "looked up"
    found = card_config(reference.model, config_class, f"{field}.model.config")
    if found.family != "diffusion":
        raise ConfigError(
            f"{field}.run: {reference.source[1]!r} is a {reference.model.family} model; name a run of family "
            "diffusion"
        )
    model: Model = found  # type: ignore[assignment]  # of family diffusion
    return model


def disagreements(
    reference: Pretrained, field: str, role: str, own: Model, data: DataSpec, *, in_units: bool
) -> Iterator[str]:
    """Reasons why it cannot serve a model of `own` configuration as `role`; none before it is looked up.

    `in_units`: its outputs must mean the same as the model's own.
    """
    if reference.source[0] != "run":
        yield f"{field}: got a {reference.source[0]}, but a {role} is a trained run; set {field}.run"
        return
    if reference.model is None:
        return
    named = f"{field}.run: {reference.source[1]!r}"
    try:
        other = model_of(reference, field)
    except ConfigError as error:
        yield from error.problems
        return
    pairs = [*_data_pairs(reference.model.data, other, own, data)]
    if in_units:
        pairs += _unit_pairs(other, own)
    for what, theirs, ours in pairs:
        if theirs != ours:
            yield f"{named} has {what} {theirs}, this model {ours}; a {role} must agree in it"
    if other.conditions(reference.model.data) and not own.conditions(data):
        yield f"{named} takes classes, and this model does not; name a run without"
    if own.first_stage is not None and own.latent_norm != "whole":
        yield f"{field}: with latent_norm=channel each model measures its own; use one latent_scale in both"
    elif own.first_stage is not None and own.latent_scale is None:
        yield f"{field}: two models of latents need one latent_scale; set the same in both recipes"


def _data_pairs(
    others_data: DataSpec, other: Model, own: Model, data: DataSpec
) -> Iterator[tuple[str, object, object]]:
    """What must be equal, named: the other's, and the model's own."""
    theirs, ours = ("x".join(map(str, spec.shape)) for spec in (others_data, data))
    yield "images of", theirs, ours
    yield "first_stage", _digest(other.first_stage), _digest(own.first_stage)
    yield "latent_norm", other.latent_norm, own.latent_norm
    yield "latent_scale", other.latent_scale, own.latent_scale
    if other.conditions(others_data) and own.conditions(data):
        yield "classes", others_data.classes, data.classes


def _unit_pairs(other: Model, own: Model) -> Iterator[tuple[str, object, object]]:
    yield "objective", other.objective.kind, own.objective.kind
    for name in own.objective.output_units:
        yield f"objective.{name}", getattr(other.objective, name, None), getattr(own.objective, name)


def _digest(stage: FirstStageConfig | None) -> str | None:
    return None if stage is None else stage.digest
