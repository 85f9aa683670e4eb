"""Checks, before a run starts, that its first stage and arrays encoded by one fit the recipe's data."""

from __future__ import annotations

from pathlib import Path

from sfumato.core.first_stage import CODES, LATENT_MEAN, FirstStageConfig
from sfumato.core.pretrained import references
from sfumato.data.columns import carried
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.runs import pretrained


def named(run: str, root: Path) -> FirstStageConfig:
    """The first stage that a run or model folder is, with its folder, digest and card.

    Raises ConfigError in one line.
    """
    return pretrained.look_up(FirstStageConfig(run=run), root, field="")


def stages_of(recipe: Recipe) -> list[tuple[str, FirstStageConfig]]:
    """The first stages that the recipe's model uses, each with its field."""
    return list(references(recipe.model, "model", FirstStageConfig))


def check_data(recipe: Recipe, manifest: Manifest) -> None:
    """Check that a first stage was trained on these images, and that encoded arrays come from it, unchanged.

    Raises ConfigError in one line.
    """
    for field, stage in stages_of(recipe):
        _check_stage(recipe, manifest, field, stage)


def _check_stage(recipe: Recipe, manifest: Manifest, field: str, stage: FirstStageConfig) -> None:
    columns = carried(recipe.data, manifest)
    encoded = [columns[name].encoder for name in (LATENT_MEAN, CODES) if name in columns]
    if not encoded:
        if not any(info.stored == "arrays" for info in manifest.columns.values()):  # those sets are copies
            _check_trained_on(field, stage, manifest)
        return
    encoder = manifest.encoders.get(encoded[0] or "")
    if encoder is None or encoder.digest != stage.digest:
        said = f"{encoder.run} (digest {encoder.digest[:12]})" if encoder else "something unknown"
        raise ConfigError(
            f"data.path: {recipe.data.path} was encoded by {said}, the recipe's first stage has digest "
            f"{str(stage.digest)[:12]}; run `sfumato precompute` with it"
        )
    if recipe.data.transforms:
        raise ConfigError(
            "data.transforms: arrays that were encoded beforehand do not follow them; leave them out, or "
            "train from the images"
        )


def _check_trained_on(field: str, stage: FirstStageConfig, manifest: Manifest) -> None:
    trained_on = stage.model.trained_on if stage.model is not None else None
    if trained_on not in (None, manifest.digest) and not stage.other_data:
        raise ConfigError(
            f"{field}.run: {stage.run!r} was trained on other data (digest {str(trained_on)[:12]}) than "
            f"data.path ({manifest.name}, digest {manifest.digest[:12]}); train a first stage on this data, "
            f"or confirm it with {field}.other_data=true"
        )
