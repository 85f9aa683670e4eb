"""`sfumato ema`: a model with a weight average whose length differs from those that training kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sfumato import recipe as recipes
from sfumato.core.family import EmaOf
from sfumato.core.schedules import power_exponent
from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.errors import CheckpointError, ConfigError
from sfumato.runtime.runs.targets import run_folder_of
from sfumato.runtime.training.ema_snapshots import averages_uri
from sfumato.sampling.model_folder import read_model_folder, save_model_folder
from sfumato.training import checkpoint as checkpoints
from sfumato.training.family_state import restored_state
from sfumato.training.loop import progress_at
from sfumato.training.post_hoc import Profile, reconstruct
from sfumato.training.store import open_store


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The written model. `error` is the relative distance of the combined profile from the wanted one."""

    folder: Path
    images: int
    snapshots: int
    error: float


def rebuild(run: str, out: Path, *, sigma_rel: float, images: int | None, root: Path) -> Rebuilt:
    """Write a run's model folder with averages of relative width `sigma_rel`, as of this many images (by
    default of the last snapshot).

    Raises ConfigError for an impossible width, CheckpointError if the run kept no averages.
    """
    try:
        power_exponent(sigma_rel)
    except ValueError as error:
        raise ConfigError(f"--sigma-rel: {error}") from error
    folder, _ = run_folder_of(run, root=root)
    recipe = recipes.load(folder.path / "recipe.yaml")
    store = open_store(averages_uri(recipe, folder))
    found = {saved.images: saved for saved in checkpoints.complete(store)}
    if not found:
        raise CheckpointError(
            f"run {folder.id} kept no averages from which to build others; train with train.snapshots.every "
            "set, for example to a hundredth of train.images"
        )
    at = max(found) if images is None else images
    if not min(found) <= at <= max(found):
        raise ConfigError(
            f"--images: got {at:,}, the run's snapshots are from {min(found):,} to {max(found):,}"
        )
    manifest = Manifest.load(recipe.data.path)
    spec = spec_of(recipe.data, manifest)
    family = recipe.model.build(spec)
    weights: dict[str, Mapping[str, Tensor]] = {}
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
        snapshots = [
            (number, checkpoints.load(store, saved, Path(scratch))) for number, saved in sorted(found.items())
        ]
        # The state is not an average: take that of the last snapshot before.
        state = restored_state(
            family, next(tensors for number, tensors in reversed(snapshots) if number <= at)
        )
        for name in family.samplers:
            net = family.nets[name]
            if isinstance(net, EmaOf):
                weights[name], distance = reconstruct(snapshots, net.source, Profile(at, sigma_rel))
                worst = max(worst, distance)
            else:
                weights[name] = read_model_folder(folder.model, trust=True).weights[name]
    notes = {"ema": f"sigma_rel {sigma_rel:g}, put together from {len(found)} snapshots (error {worst:.1e})"}
    save_model_folder(
        out,
        recipe.model,
        spec,
        weights,
        name=recipe.name,
        progress=replace(progress_at(family, recipe.train, at), state=state),
        notes=notes,
        trained_on=manifest.digest,
        provenance=recipe.marking(),
    )
    return Rebuilt(out, at, len(found), worst)
