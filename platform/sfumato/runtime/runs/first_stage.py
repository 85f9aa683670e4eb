"""Before a run starts: which model its first stage is, recorded in the recipe by digest and content.

A recipe names a run; that name may mean another model tomorrow. What starts is a recipe that names a model
folder by its absolute path, its digest and what is in it, so that workers on other nodes find it, a model
that has changed is noticed, and an exported model can be built without the folder.
"""

from __future__ import annotations

from pathlib import Path

from sfumato.core.first_stage import CODES, LATENT_MEAN, FirstStageConfig, recorded
from sfumato.data.columns import carried
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError, SfumatoError
from sfumato.recipe import Recipe
from sfumato.runtime.runs.resolve import model_of
from sfumato.sampling.model_files import CARD, read_card

FIELD = "model.first_stage"


def resolved(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with its first stage looked up and recorded; as it is where it has none.

    Raises ConfigError, in one line, where nothing goes by that name, or the model is not the recorded one.
    """
    stage = getattr(recipe.model, "first_stage", None)
    if not isinstance(stage, FirstStageConfig) or not stage.run:
        return recipe
    model = recipe.model.model_copy(update={"first_stage": look_up(stage, root)})
    return recipe.model_copy(update={"model": model})


def look_up(stage: FirstStageConfig, root: Path) -> FirstStageConfig:
    """The first stage with its folder, digest and card. Raises ConfigError in one line."""
    try:
        folder = model_folder(stage.run, root)
        card, digest = read_card(folder)
        model = recorded(card)
    except SfumatoError as error:
        if (
            stage.model is not None
        ):  # a run that is trained goes on without it; training would say what is gone
            return stage
        raise ConfigError(f"{FIELD}.run: {stage.run!r}: {error}") from error
    if stage.digest not in (None, digest):
        raise ConfigError(
            f"{FIELD}.run: {stage.run!r} is another model than before: its digest is {digest[:12]}, "
            f"{FIELD}.digest says {str(stage.digest)[:12]}; put the old model back, or leave the digest out"
        )
    return stage.model_copy(update={"run": str(folder), "digest": digest, "model": model})


def check_data(recipe: Recipe, manifest: Manifest) -> None:
    """A first stage has to know these images; what was encoded beforehand has to come from it, unchanged.

    Raises ConfigError in one line.
    """
    stage = getattr(recipe.model, "first_stage", None)
    if not isinstance(stage, FirstStageConfig):
        return
    columns = carried(recipe.data, manifest)
    encoded = [columns[name].encoder for name in (LATENT_MEAN, CODES) if name in columns]
    if not encoded:
        if not any(info.stored == "arrays" for info in manifest.columns.values()):  # those sets are copies
            _check_trained_on(stage, manifest)
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


def _check_trained_on(stage: FirstStageConfig, manifest: Manifest) -> None:
    trained_on = stage.model.trained_on if stage.model is not None else None
    if trained_on not in (None, manifest.digest) and not stage.other_data:
        raise ConfigError(
            f"{FIELD}.run: {stage.run!r} was trained on other data (digest {str(trained_on)[:12]}) than "
            f"data.path ({manifest.name}, digest {manifest.digest[:12]}); train a first stage on this data, "
            f"or say that you mean it by {FIELD}.other_data=true"
        )


def model_folder(run: str, root: Path) -> Path:
    """The absolute path of the model folder that a run's name, id or folder stands for.

    Raises ConfigError or CheckpointError.
    """
    near = root / run
    if (near / CARD).is_file():
        return near.resolve()
    with model_of(str(near) if (near / "run.json").is_file() else run, root=root) as found:
        if not found.lasting:
            raise ConfigError("is a checkpoint; a first stage has to be a finished run or an exported model")
        return found.model.resolve()
