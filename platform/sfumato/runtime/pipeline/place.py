"""Where a pipeline works: the folders its paths are relative to, and the settings all its recipes share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.tracking.config import TrackingSettings


@dataclass(frozen=True, slots=True)
class PipelinePlace:
    """Plain values that travel to the process of a stage."""

    root: Path
    """The project's folder, absolute: data, runs and the embedded MLflow store are in it."""
    folder: Path
    """The pipeline file's folder, absolute: the recipes that it names are relative to it."""
    storage: str | None = None
    tracking: TrackingSettings | None = None

    def path(self, text: str) -> str:
        """The absolute path of data or of a run; URIs are returned unchanged."""
        return text if "://" in text else str((self.root / text).resolve())

    def found(self, text: str | None) -> Path | None:
        """The absolute path of something on a disk, if a stage names it."""
        return None if text is None else (self.root / text).resolve()

    def recipe(self, file: Path, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with a stage's changes and the pipeline's shared settings. Raises ConfigError."""
        content = recipes.read(file, [*overrides(changes)])
        if self.storage is not None:
            content["storage"] = self.storage
        if self.tracking is not None:
            content["tracking"] = self.tracking.model_dump(mode="json")
        recipe = recipes.parse(content)
        if not recipe.tracking.enabled:
            raise ConfigError(
                "tracking.enabled: false, but a pipeline records its stages in MLflow: leave it out"
            )
        return recipe


def overrides(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Changes, dotted or nested, as the `key=value` that recipes take."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
