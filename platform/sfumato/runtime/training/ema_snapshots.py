"""Keeps, during training, the averages from which `sfumato ema` builds one of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """The averages that a run of this recipe keeps in addition to those of its family."""
    settings = recipe.train.snapshots
    return {} if settings.every is None else post_hoc.emas(family, settings.sigma_rel)


def averages_uri(recipe: Recipe, folder: RunFolder) -> str:
    """Where a run's averages are stored: next to its checkpoints."""
    uri = recipe.train.checkpoint.uri
    return str(folder.path / "averages") if uri is None else f"{uri.rstrip('/')}/{folder.id}-averages"


Tell = Callable[[Sequence[str]], None]


def _nobody(failures: Sequence[str]) -> None:
    """For a keeper whose failures are not reported."""


class AveragesKeeper:
    """Writes them every so many images, as checkpoints that are never removed. Every rank has one.

    Each call of `tell` lists everything that could not be written so far.
    """

    def __init__(
        self, recipe: Recipe, strategy: Strategy, folder: RunFolder, scratch: Path, tell: Tell = _nobody
    ) -> None:
        self._every = recipe.train.snapshots.every
        self._strategy = strategy
        self._tell = tell
        self._at = 0
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
        return [] if self._every is None else [Hook(self._every, self.save)]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._say()

    def _say(self) -> None:
        assert self._writer is not None
        self._tell([f"averages: {failure}" for failure in self._writer.failures])

    def save(self, progress: Progress) -> None:
        """Start writing them; does nothing if the recipe keeps none."""
        if self._writer is None:
            return
        self._at = progress.images
        state = {**post_hoc.snapshot(self._strategy.state()), **stored(progress.state)}
        self._writer.save(state, images=progress.images, step=progress.step)
        self._say()

    def save_once(self, progress: Progress) -> None:
        """As `save`, unless those of the same images are written."""
        if self._at != progress.images:
            self.save(progress)
