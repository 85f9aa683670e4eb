"""The plan that a sweep's processes share: the recipe, how trials derive from it, where they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.tuning import fields
from sfumato.tuning.config import NoScheduler, PbtSettings, TuneSettings

PLAN = "sweep.json"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as plain data. `content` is the recipe with its base files and overrides, without `tune`."""

    content: dict[str, Any]
    path: str
    root: str
    metric: str
    mode: str
    parent: str
    """MLflow id of the sweep's run."""
    changes: dict[str, Any]
    """Fields that every trial changes in the recipe: how it runs, and when it is measured."""

    @classmethod
    def load(cls, path: str) -> SweepPlan:
        return cls(**json.loads((Path(path) / PLAN).read_text()))

    def save(self) -> None:
        RunFolder(Path(self.path)).write_json(PLAN, asdict(self))

    def recipe(self, number: int, values: Mapping[str, Any]) -> Recipe:
        """A trial's recipe. Raises ConfigError with everything that is wrong with these values."""
        content = {**self.content, "name": trial_name(str(self.content["name"]), number)}
        try:
            content = fields.with_values(content, values)
            return recipes.parse(fields.with_values(content, self.changes))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def problems(self, values: Mapping[str, Any], spec: DataSpec | None, samples: int | None) -> list[str]:
        """Why a trial with these values is impossible, one line each."""
        try:
            return self.recipe(0, values).problems(spec, samples)
        except ConfigError as error:
            return list(error.problems)

    def folder(self, number: int) -> RunFolder:
        """A trial's folder. No other trial has its name, by which checkpoints in object storage are found."""
        path = Path(self.path)
        return RunFolder(path / "trials" / trial_name(path.name, number))

    @property
    def stop_file(self) -> Path:
        """Present once all trials should end, with the reason: Tune does not wake a waiting trial."""
        return Path(self.path) / "stop"


def trial_name(name: str, number: int) -> str:
    """The name of the trial of that number."""
    return f"{name}-{number:03d}"


_OF_0_1 = ("space", "metric", "mode", "seed", "baseline", "scheduler", "search")
"""The fields by which version 0.1 named a sweep's folder, defaults included."""


def sweep_folder(recipe: Recipe, content: Mapping[str, Any], root: Path) -> Path:
    """The folder of this recipe's sweep. Another metric or space makes another sweep.

    A sweep that version 0.1 started keeps its folder.
    """
    assert recipe.tune is not None
    old = recipe.tune.model_dump(mode="json", include=set(_OF_0_1))
    earlier = _folder_of(recipe, content, old, root)
    return earlier if earlier.is_dir() else _folder_of(recipe, content, recipe.tune.identity(), root)


def _folder_of(recipe: Recipe, content: Mapping[str, Any], tune: Mapping[str, Any], root: Path) -> Path:
    rest = {key: value for key, value in content.items() if key not in ("tune", "tracking", "storage")}
    identity = json.dumps([rest, tune], sort_keys=True, default=str)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return (root / recipe.storage / f"{recipe.name}-sweep-{digest}").resolve()


def changes_for(recipe: Recipe, tune: TuneSettings, cores: int) -> dict[str, Any]:
    """The fields that every trial of a sweep changes in its recipe."""
    changes: dict[str, Any] = {}
    if recipe.parallel.threads_per_worker is None:
        together = recipe.parallel.workers * tune.concurrency
        changes["parallel.threads_per_worker"] = max(1, cores // together)
    if tune.metric.startswith("eval") and recipe.evaluate.every is None:
        changes["evaluate.every"] = recipe.train.images
    compares = not isinstance(tune.scheduler, NoScheduler)
    if tune.metric.startswith("eval") and compares and recipe.evaluate.ahead is None:
        changes["evaluate.ahead"] = 1  # a trial that is to be given up must not have ended before
    if isinstance(tune.scheduler, PbtSettings):
        changes["train.checkpoint.every"] = tune.scheduler.every
    return changes
