"""The interface between a kind of stage and the code that plans and runs it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from sfumato.core.config import Config
from sfumato.recipe import Recipe
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.runs.display import Display

Outputs = dict[str, Any]
"""A stage's outputs as plain data. `digest` identifies them; later stages may refer to the strings."""


def digest(content: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A stage's means for its work."""

    place: PipelinePlace
    display: Display
    before: Mapping[str, Any] | None = None
    """The outputs of its last completed execution, whatever its inputs were."""
    again: bool = False
    """Rerun even though these inputs were processed before (`--from`)."""
    at: Path | None = None
    """With `again`: the fresh run that an interrupted call had started."""
    began: Callable[[Path], None] = field(default=lambda run: None)
    """Called with the run that the stage works on."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run in MLflow: its pipeline, its stage, its parent."""


class StageSettings(Config, ABC):
    """A stage of a pipeline. Fields may hold `${stage.output}`; that stage becomes a dependency."""

    GIVES: ClassVar[tuple[str, ...]] = ()
    """The outputs that other stages may refer to."""
    OWN_RUN: ClassVar[bool] = False
    """Whether the stage works on a run of a recipe; others get a small run of their own in MLflow."""

    kind: str
    needs: tuple[str, ...] = Field((), description="Stages that have to finish first.")

    @classmethod
    def clashes(cls, stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """One line per stage of this kind that cannot be in a pipeline with another of this kind.

        `stages` has the content of all stages of the kind by name; references are unresolved.
        """
        return []

    def check(self, place: PipelinePlace) -> None:
        """Raise SfumatoError for errors that can be found before anything runs; references are unresolved."""

    @abstractmethod
    def identity(self, place: PipelinePlace) -> dict[str, Any] | None:
        """Everything that its outputs depend on, as plain data; None as long as that is unknown.

        References are replaced. Raises SfumatoError if an input is missing.
        """

    @abstractmethod
    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        """Whether the output of an earlier call still exists, unchanged."""

    @abstractmethod
    def perform(self, work: Work) -> Outputs:
        """Do the work, on the connected cluster."""

    def demand(self, place: PipelinePlace) -> Demand:
        """The resources it needs while it runs."""
        return Demand()

    def use(self, place: PipelinePlace, trained: Mapping[str, Recipe]) -> Use:
        """What it asks of a cluster before anything has run.

        References are placeholders (`references.placeholder`); `trained` are the recipes of earlier stages.
        """
        return Use()
