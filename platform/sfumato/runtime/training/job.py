"""What a training worker is told: plain data that travels to any node.

The controller of Ray Train unpickles this too, so nothing that takes long to import is imported before a
worker needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.runtime.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from sfumato.recipe import Recipe
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
    """Whether checkpoints are written on notice (`runtime.training.preemption`)."""

    def load_recipe(self) -> Recipe:
        from sfumato import recipe as recipes

        return recipes.parse(self.recipe)

    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run_path))

    def checkpoint_uri(self, recipe: Recipe) -> str:
        """Where this run's checkpoints lie."""
        return self.folder().checkpoint_uri(recipe)


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """What Ray Train runs on each worker, with the job as `config["job"]`; rank 0's summary."""
    from sfumato.runtime.training.worker import opened

    with opened(config["job"]) as worker:
        return None if worker is None else worker.train()
