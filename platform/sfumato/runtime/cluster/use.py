"""What a piece of work asks of a cluster: a recipe that is trained or measured, or equal actors."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Actors:
    """Equal processes, each of which has to fit on one node; `fields` are those that change them."""

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    fields: str = "actors"


@dataclass(frozen=True, slots=True)
class Use:
    """A stage's work; `at_once` equal ones may run side by side, and one has to fit."""

    stage: str = ""
    """Its name in a pipeline; empty for a command on one recipe."""
    recipe: Recipe | None = None
    trains: bool = False
    measures: bool = False
    actors: Actors | None = None
    at_once: int = 1
