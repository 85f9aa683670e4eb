"""Keeps, while training goes on, the averages from which `sfumato ema` puts together one of any length."""

from __future__ import annotations

from pathlib import Path

from sfumato.core.family import EmaOf, Family
from sfumato.core.progress import Progress
from sfumato.parallel import Strategy
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.training import checkpoint as checkpoints
from sfumato.training import post_hoc
from sfumato.training.family_state import stored
from sfumato.training.loop import Hook
from sfumato.training.store import open_store


def averages_of(recipe: Recipe, family: Family) -> dict[str, EmaOf]:
    """The averages that a run of this recipe keeps beside those of its family."""
    settings = recipe.train.snapshots
    return {} if settings.every is None else post_hoc.shadows(family, settings.sigma_rel)


def averages_uri(recipe: Recipe, folder: RunFolder) -> str:
    """Where a run's averages lie: beside its checkpoints."""
    uri = recipe.train.checkpoint.uri
    return str(folder.path / "averages") if uri is None else f"{uri.rstrip('/')}/{folder.id}-averages"


class AveragesKeeper:
    """Writes them every so many images, as checkpoints that are never removed. Every rank has one."""

    def __init__(self, recipe: Recipe, strategy: Strategy, folder: RunFolder, scratch: Path) -> None:
        self._every = recipe.train.snapshots.every
        self._strategy = strategy
        self._writer = (
            None
            if self._every is None
            else checkpoints.Writer(
                open_store(averages_uri(recipe, folder)),
                keep=None,
                recipe_digest=recipe.digest(),
                strategy=recipe.parallel.strategy,
                scratch=scratch,
            )
        )

    def hooks(self) -> list[Hook]:
        return [] if self._every is None else [Hook(self._every, self._save)]

    @property
    def failures(self) -> list[str]:
        """Why averages could not be written, oldest first."""
        return [] if self._writer is None else self._writer.failures

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _save(self, progress: Progress) -> None:
        assert self._writer is not None
        state = {**post_hoc.snapshot(self._strategy.state()), **stored(progress.state)}
        self._writer.save(state, images=progress.images, step=progress.step)
