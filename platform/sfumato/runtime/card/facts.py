"""What a run's folder says of its model, as plain JSON values.

Whatever the run recorded is in here whole: the recipe, the data's manifest, the evaluation's report, what
training used. Two things are left out on purpose: addresses of servers, and folders of this machine, of which
the last part remains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.data.format.manifest import Manifest
from sfumato.errors import CheckpointError, DataError, SfumatoError
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.report import FILE, read_report
from sfumato.recipe import Recipe
from sfumato.runtime.card import limits
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training import compute
from sfumato.sampling.model_files import read_card
from sfumato.tracking.redact import HIDDEN, is_secret
from sfumato.version import __version__

CARD_FORMAT = 1
TOPICS = ("memorisation", "bias", "detection")
"""Parts of the card that figures of an evaluation belong to (`Metric.topic`); all others are quality."""
_ADDRESSES = {"storage", "tracking", "tune"}


def facts_of(folder: RunFolder, model: Path | None = None) -> dict[str, Any]:
    """The facts of a run's trained model, or of another `model` folder of its, such as that of a checkpoint,
    of which the run has measured nothing.

    Raises CheckpointError for a run without a model.
    """
    if model is None and not folder.model.is_dir():
        raise CheckpointError(f"run {folder.id} has no trained model yet, so there is nothing to describe")
    model = model or folder.model
    recipe = recipes.load(folder.path / "recipe.yaml")
    stored, digest = read_card(model)
    final = folder.model.is_dir() and digest == read_card(folder.model)[1]
    facts: dict[str, Any] = {
        "card": CARD_FORMAT,
        "sfumato": __version__,
        "model": _model(folder, model, recipe, stored, digest),
        "data": _data(recipe),
        "recipe": recipe.model_dump(mode="json", exclude=_ADDRESSES),
        "training": _stage(folder, "train"),
        "compute": _compute(folder),
        "evaluation": _evaluation(folder) if final else None,
        "registered": _stage(folder, "register") if final else None,
        "provenance": recipe.provenance.model_dump(mode="json") if recipe.marking().on else None,
    }
    facts["topics"] = topics_of(facts["evaluation"])
    facts = _for_others(facts)
    return facts | {"limits": limits.limits_of(facts)}


def topics_of(report: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The names of a report's figures by topic."""
    found: dict[str, list[str]] = {topic: [] for topic in ("quality", *TOPICS)}
    known = all_metrics()
    for figure in () if report is None else report["metrics"]:
        metric, _ = report["computed_on"].get(figure, (figure, "")) if report else (figure, "")
        topic = known[metric].topic if metric in known else "quality"
        found[topic if topic in TOPICS else "quality"].append(figure)
    return found


def _model(
    folder: RunFolder, model: Path, recipe: Recipe, stored: Mapping[str, Any], digest: str
) -> dict[str, Any]:
    about = recipe.registry
    return {
        "name": recipe.name,
        "run": folder.id,
        "description": about.description,
        "licence": about.licence,
        "digest": digest,
        "parameters": {net: _parameters(model / f"{net}.safetensors") for net in _nets(stored)},
        **{key: value for key, value in stored.items() if key not in ("config", "name", "sfumato")},
        "trained_with": stored.get("sfumato"),
        "recipe_digest": recipe.digest(),
    }


def _nets(stored: Mapping[str, Any]) -> list[str]:
    return sorted(stored["weights_sha256"])


def _parameters(file: Path) -> int:
    """How many numbers a file of weights holds, from its header."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 - no mapping
    count = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        count += size
    return count


def _data(recipe: Recipe) -> list[dict[str, Any]]:
    """Every set that was trained on, with its weight; a set that is gone has only its place."""
    places = [(recipe.data.path, 1.0), *((mixed.path, mixed.weight) for mixed in recipe.data.mix)]
    return [{"path": path, "weight": weight, **_manifest(path)} for path, weight in places]


def _manifest(path: str) -> dict[str, Any]:
    try:
        manifest = Manifest.load(path)
    except (DataError, OSError) as error:
        return {"missing": str(error)}
    return {
        **manifest.model_dump(mode="json", exclude={"shards"}),
        "digest": manifest.digest,
        "samples": manifest.samples,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
    }


def _stage(folder: RunFolder, name: str) -> dict[str, Any] | None:
    record = folder.read_json(f"stages/{name}.json")
    return None if record is None else dict(record["result"])


def _compute(folder: RunFolder) -> dict[str, Any] | None:
    """What training used; None for runs of versions that kept no record."""
    records = compute.records_of(folder)
    return compute.totals(records) if records else None


def _evaluation(folder: RunFolder) -> dict[str, Any] | None:
    """The newest report of the finished model; None without one."""
    place = folder.path / "evaluation"
    if not (place / FILE).is_file():
        return None
    try:
        return dict(json.loads(json.dumps(asdict(read_report(place)))))
    except SfumatoError:
        return None


def _for_others(value: Any) -> Any:
    """The same without secrets, and with the last part alone of every absolute path."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if held is not None and is_secret(str(key)) else _for_others(held)
            for key, held in value.items()
        }
    if isinstance(value, list | tuple):
        return [_for_others(held) for held in value]
    if isinstance(value, str) and value.startswith("/") and len(value) > 1:
        return Path(value).name
    return value
