"""Runs and models as later stages see them: a folder and its content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError
from sfumato.recipe import Recipe
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Work
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import Session, open_session
from sfumato.runtime.runs.targets import run_folder_of
from sfumato.sampling.model_files import CARD, read_card


def model_digest(folder: str) -> str | None:
    """The digest of a model folder; None if there is no model."""
    return read_card(Path(folder))[1] if (Path(folder) / CARD).is_file() else None


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run whose training has finished, and its recipe with a stage's changes."""

    folder: RunFolder
    recipe: Recipe
    digest: str
    """Of its model."""

    @classmethod
    def of(cls, run: str, changes: Mapping[str, Any], place: PipelinePlace) -> TrainedRun:
        """The run of that folder, name or id. Raises SfumatoError if it is missing or not trained."""
        folder, _ = run_folder_of(run, root=place.root)
        digest = model_digest(str(folder.model))
        if digest is None:
            raise CheckpointError(f"run {folder.id} has no trained model yet: finish its training first")
        return cls(folder, place.recipe(folder.path / "recipe.yaml", changes), digest)

    @contextmanager
    def session(self, work: Work) -> Iterator[Session]:
        """The run, opened again to add to it."""
        root = work.place.root
        with open_session(
            self.recipe, work.display, root=root, at=self.folder.path, keep_recipe=True
        ) as session:
            work.began(session.folder.path)
            yield session
