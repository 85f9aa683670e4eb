"""A run that is part of another one, such as a trial of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sfumato.runtime.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Child:
    """Where such a run is stored, and how it is recorded."""

    folder: RunFolder
    parent: str
    """MLflow id of the run that it is part of."""
    tags: Mapping[str, str] = field(default_factory=dict)
