"""A model folder: all that sampling needs, as JSON and safetensors.

    config.json          family, its configuration, the data's description, origin, checksums
    <net>.safetensors    the weights of each network that the family samples with; for an adapter, only its
                         own, and config.json names the place of its base
    state.safetensors    the family's state (`core.state`), if it has any
    provenance.json      how its pictures are marked when they leave, if they are; not part of its digest

Nothing in it is code or a pickle. A folder is written next to its place and renamed, so that it is complete
or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sfumato import families
from sfumato.core.batch import DataSpec
from sfumato.core.drafts import folder_beside, writing
from sfumato.core.earlier_defaults import FIRST, as_of
from sfumato.core.family import Family, FamilyConfig, Trainable
from sfumato.core.finding import ALLOW, built_in_only, paths_in
from sfumato.core.pretrained import built_as
from sfumato.core.progress import Progress
from sfumato.core.state import State, initial, mismatch
from sfumato.core.stored import Weights as Base
from sfumato.core.validation import first_problem
from sfumato.errors import CheckpointError, ConfigError
from sfumato.provenance.stored import Provenance, read_provenance, write_provenance
from sfumato.sampling.model_files import CARD, FORMAT, read_card, read_weights, write_weights
from sfumato.sampling.pretrained_files import base_of, base_record
from sfumato.version import __version__

__all__ = ["CARD", "StoredModel", "Weights", "read_model_card", "read_model_folder", "save_model_folder"]

Weights = Mapping[str, Mapping[str, Tensor]]
STATE = "state.safetensors"
PROGRESS = ("step", "images", "total_images", "batch")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The content of a model folder. `digest` identifies all of it: the card has the weights' checksums."""

    name: str
    config: FamilyConfig
    data: DataSpec
    progress: Progress
    notes: Mapping[str, str]
    weights: Weights
    digest: str
    bases: Mapping[str, Base]
    """The places of the other weights of networks stored only as adapters."""
    trained_on: str | None
    provenance: Provenance


def save_model_folder(
    folder: str | os.PathLike[str],
    config: FamilyConfig,
    data: DataSpec,
    nets: Weights,
    *,
    name: str,
    progress: Progress,
    notes: Mapping[str, str] | None = None,
    trained_on: str | None = None,
    provenance: Provenance | None = None,
    whole: bool = False,
) -> str:
    """Write a model folder, replacing an older model there, and return its digest.

    `nets` has the state dict of every network in the family's `samplers`; `progress` is how far they were
    trained (`Progress.at(images)` if no more is known), with the family's state; `notes` is free text
    about the model, such as its license, `trained_on` the digest of its data set, `provenance` how its
    pictures are marked (None: not at all). For an adapter, `nets` has
    only the adapter, and the card names its base; with `whole` all networks are complete.

    Raises:
        ConfigError: the folder holds something that is not a model.
    """
    target = Path(folder)
    if target.exists() and not (target / CARD).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not a model folder; choose another place")
    family = config.build(data)
    missing = set(family.samplers) - set(nets)
    assert not missing, f"no weights for {missing}"
    bases = {} if whole else {net: base_record(base) for net, base in bases_of(family, nets).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = folder_beside(target)
    try:
        sums = {net: write_weights(draft / f"{net}.safetensors", state) for net, state in nets.items()}
        card = {
            "format": FORMAT,
            "name": name,
            "family": families.reference(config),
            "config": config.model_dump(mode="json"),
            "data": data.as_card(),
            "images": progress.images,
            "progress": {name: getattr(progress, name) for name in PROGRESS},
            "trained_on": trained_on,
            "notes": dict(notes or {}),
            "weights_sha256": sums,
            **_write_state(draft, config.build(data), progress.state),
            "sfumato": __version__,
            **({"bases": bases} if bases else {}),
        }
        text = json.dumps(card, indent=2, ensure_ascii=False).encode() + b"\n"
        with writing(draft / CARD):
            (draft / CARD).write_bytes(text)
        write_provenance(draft, provenance)
        _replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return hashlib.sha256(text).hexdigest()


def read_model_folder(folder: str | os.PathLike[str], *, trust: bool = False) -> StoredModel:
    """Read and check a model folder.

    `trust` allows it to name a family by import path, which runs that module's code.

    Raises:
        CheckpointError: not a model folder, an unknown format, or damaged.
        ConfigError: a family that is unknown or not trusted.
    """
    path = Path(folder)
    card, digest = read_card(path)
    stored = _described(path, card, digest, trust=trust)
    weights = {}
    for net, expected in card["weights_sha256"].items():
        if not net.isidentifier():  # it becomes a file's name, which must stay in the folder
            raise CheckpointError(f"{path / CARD} is damaged: weights {net!r} is not a file name")
        weights[net] = read_weights(path / f"{net}.safetensors", str(expected))
    return replace(stored, weights=weights)


def read_model_card(folder: str | os.PathLike[str], *, trust: bool = False) -> StoredModel:
    """A model folder's description of its model, without the weights: `weights` is empty, nothing is built.

    `trust` and the errors are as in `read_model_folder`.
    """
    path = Path(folder)
    return _described(path, *read_card(path), trust=trust)


def _described(path: Path, card: Mapping[str, Any], digest: str, *, trust: bool) -> StoredModel:
    config, data = _read_config(path, card, trust=trust)
    return StoredModel(
        name=str(card["name"]),
        config=config,
        data=data,
        progress=replace(_progress(path, card), state=_read_state(path, card, config, data)),
        notes=card["notes"],
        weights={},
        digest=digest,
        trained_on=card.get("trained_on"),
        provenance=read_provenance(path, trust=trust),
        bases={net: base_of(record, path / CARD) for net, record in card.get("bases", {}).items()},
    )


def bases_of(family: Family, nets: Iterable[str]) -> dict[str, Base]:
    """The stored bases of the networks that are adapters, or averages of adapters."""
    built = {net: built_as(family, net) for net in nets if net in family.nets}
    return {
        net: spec.weights
        for net, spec in built.items()
        if isinstance(spec, Trainable) and spec.adapter and spec.weights is not None
    }


def _read_config(path: Path, card: Mapping[str, Any], *, trust: bool) -> tuple[FamilyConfig, DataSpec]:
    family = card["family"]
    own = next(paths_in([family, card["config"]]), family if ":" in family else None)
    if own is not None and not trust:
        what = "family" if own == family else "component"
        raise ConfigError(
            f"{path} needs the {what} {own!r}, which is not part of Sfumato; loading it runs its code: "
            f"{ALLOW}"
        )
    kind = families.config_class(family)
    try:
        with built_in_only(not trust):
            config = as_of(kind.model_validate(card["config"]), FIRST)
    except ValidationError as error:
        problem = first_problem(error, kind)
        raise CheckpointError(
            f"{path / CARD} has a configuration that {family} does not take: {problem}"
        ) from None
    try:
        data = DataSpec.from_card(card["data"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path / CARD} is damaged: field 'data': {error}") from None
    return config, data


def _write_state(draft: Path, family: object, state: State) -> dict[str, str]:
    """Store the family's state, if it has any; returns the card's entry for it."""
    if wrong := mismatch(initial(family), state):
        raise ValueError(f"the model's progress does not hold the state of its family: {wrong}")
    if not state:
        return {}
    assert not (draft / STATE).exists(), f"no network of a family with state may be called {Path(STATE).stem}"
    return {"state_sha256": write_weights(draft / STATE, state)}


def _read_state(path: Path, card: Mapping[str, Any], config: FamilyConfig, data: DataSpec) -> State:
    """The family's state; its initial values if the card names none, as from an older version."""
    first = initial(config.build(data))
    if "state_sha256" not in card:
        return first
    state = read_weights(path / STATE, str(card["state_sha256"]))
    if wrong := mismatch(first, state):
        raise CheckpointError(f"{path / STATE} is the state of another family: {wrong}")
    return state


def _progress(path: Path, card: Mapping[str, Any]) -> Progress:
    """How far the model was trained; older cards have only the images."""
    found = card.get("progress", asdict(Progress.at(card["images"])))
    try:
        step, images, total_images, batch = (int(found[name]) for name in PROGRESS)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path / CARD} is damaged: field 'progress': {error}") from None
    return Progress(step, images, total_images, batch)


def _replace(draft: Path, target: Path) -> None:
    """Put `draft` in the place of `target`. Between the two renames the old folder has another name."""
    if not target.exists():
        draft.rename(target)
        return
    old = folder_beside(target)
    target.rename(old / target.name)
    try:
        draft.rename(target)
    except OSError:
        (old / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
