"""A training worker's instructions: plain data that travels to any node.

Ray Train's controller unpickles this, too, so slow imports wait until a worker needs them.
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
    """A training stage: the recipe with absolute paths, and where to report."""

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
        """The place of this run's checkpoints."""
        return self.folder().checkpoint_uri(recipe)


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train runs this on each worker, with the job as `config["job"]`; returns rank 0's summary."""
    from sfumato.runtime.training.worker import opened

    with opened(config["job"]) as worker:
        return None if worker is None else worker.train()
