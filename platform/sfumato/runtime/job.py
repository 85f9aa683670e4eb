"""What a training worker is told: plain data that travels to any node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.recipe import Recipe
from sfumato.runtime.run_folder import RunFolder
from sfumato.tracking.run import TrackerHandle


@dataclass(frozen=True)
class TrainJob:
    """A training stage: the recipe with absolute paths, and who to report to."""

    recipe: dict[str, Any]
    run_path: str
    threads: int
    board: Any
    """Handle of a `board.Board` actor."""
    tracker: TrackerHandle
    notices: bool = False
    """Whether checkpoints are written on notice (`runtime.group.notice`)."""

    def load_recipe(self) -> Recipe:
        return recipes.parse(self.recipe)

    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run_path))

    def checkpoint_uri(self, recipe: Recipe) -> str:
        """Where this run's checkpoints lie."""
        return self.folder().checkpoint_uri(recipe)


def run_job(config: dict[str, Any]) -> dict[str, Any] | None:
    """What Ray Train runs on each worker, with the job as `config["job"]`.

    What training needs is imported there alone: the controller of Ray Train unpickles this function too, and
    would take as long as a worker to start.
    """
    from sfumato.runtime.worker import train_worker

    return train_worker(config)
