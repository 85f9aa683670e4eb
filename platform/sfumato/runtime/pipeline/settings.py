"""The pipeline file: named stages, what each needs, and what they share. All errors are reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from sfumato.core.config import Config
from sfumato.core.validation import explain
from sfumato.errors import ConfigError, SfumatoError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.pipeline import graph, references
from sfumato.runtime.pipeline.kinds import KINDS
from sfumato.runtime.pipeline.overrides import apply
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Outputs, StageSettings
from sfumato.tracking.config import TrackingSettings

_STAGE_NAME = r"^[a-z][a-z0-9_-]*$"


class PipelineSettings(Config):
    """A pipeline file without its stages."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the pipeline.")
    at_once: int = Field(
        2, ge=1, description="Largest number of stages that run side by side, if the cluster has room."
    )
    storage: str | None = Field(
        None, description="Folder for all recipes' runs and the pipeline's state; null: each recipe's own."
    )
    tracking: TrackingSettings | None = Field(
        None, description="MLflow, for all recipes; null: the embedded store."
    )
    stages: dict[str, dict[str, Any]] = Field(
        min_length=1, description="The stages by name: `kind`, `needs`, and the fields of the kind."
    )


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose stages are well formed and whose references exist."""

    settings: PipelineSettings
    place: PipelinePlace
    kinds: Mapping[str, type[StageSettings]]

    @cached_property
    def needs(self) -> dict[str, frozenset[str]]:
        """Each stage's dependencies: those it names and those it refers to."""
        return {
            name: frozenset(content.get("needs", ())) | {stage for stage, _ in references.find(content)}
            for name, content in self.settings.stages.items()
        }

    @cached_property
    def order(self) -> list[str]:
        return graph.ordered(self.needs)

    @property
    def state(self) -> Path:
        """The folder in which the pipeline's state is kept."""
        return self.place.root / (self.settings.storage or "runs") / "pipelines" / self.settings.name

    def stage(self, name: str, outputs: Mapping[str, Outputs]) -> StageSettings:
        """A stage with its references replaced; outputs that do not exist yet become names in angle brackets.

        Raises ConfigError with the fields that are wrong.
        """

        def look_up(stage: str, output: str) -> str:
            if stage not in outputs:
                return references.placeholder(stage, output)
            if output not in outputs[stage]:
                raise ConfigError(f"stages.{name}: stage {stage} gave no {output!r} this time")
            return str(outputs[stage][output])

        content = references.replace(self.settings.stages[name], look_up)
        try:
            return self.kinds[name].model_validate(content)
        except ValidationError as error:
            raise ConfigError(*explain(error, self.kinds[name], ("stages", name))) from None

    def uses(self) -> Iterator[Use]:
        """What each stage asks of a cluster, in order, before anything has run."""
        trained: dict[str, Recipe] = {}
        for name in self.order:
            use = self.stage(name, {}).use(self.place, trained)
            if use.recipe is not None and use.trains:
                trained[name] = use.recipe
            yield replace(use, stage=name)

    def check(self) -> None:
        """Raises ConfigError with every error that can be found before anything runs."""
        lines: list[str] = []
        for name in self.order:
            try:
                self.stage(name, {}).check(self.place)
            except ConfigError as error:
                lines += [
                    line if line.startswith("stages.") else f"stages.{name}: {line}"
                    for line in error.problems
                ]
            except SfumatoError as error:
                lines.append(f"stages.{name}: {error}")
        if lines:
            raise ConfigError(*lines)


def is_pipeline(path: Path) -> bool:
    """Whether a file is a pipeline rather than a recipe: it has `stages`."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # reading it as a recipe says what is wrong with it
    return isinstance(content, Mapping) and "stages" in content


def load(path: Path, overrides: Sequence[str], *, root: Path) -> Pipeline:
    """Read a pipeline, apply `stage.key=value` overrides, and check all of it.

    Raises ConfigError with one line for each thing that is wrong.
    """
    content = yaml.safe_load(path.read_text())
    for override in overrides:
        apply(content, override)
    try:
        settings = PipelineSettings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(*explain(error, PipelineSettings)) from None
    if settings.tracking is not None and not settings.tracking.enabled:
        raise ConfigError(
            "tracking.enabled: false, but a pipeline records its stages in MLflow: leave it out"
        )
    place = PipelinePlace(root.resolve(), path.resolve().parent, settings.storage, settings.tracking)
    pipeline = Pipeline(settings, place, _kinds(settings))
    problems = (_name_problems(settings), _reference_problems(pipeline), _clashes(pipeline))
    if lines := [line for found in problems for line in found]:
        raise ConfigError(*lines)
    pipeline.check()
    return pipeline


def _kinds(settings: PipelineSettings) -> dict[str, type[StageSettings]]:
    lines: list[str] = []
    kinds: dict[str, type[StageSettings]] = {}
    for name, content in settings.stages.items():
        kind = content.get("kind")
        if kind is None:
            lines.append(f"stages.{name}.kind: required, one of {', '.join(KINDS.names())}")
            continue
        try:
            kinds[name] = KINDS.find(str(kind))
        except ConfigError as error:
            lines += [f"stages.{name}.kind: {line}" for line in error.problems]
    if lines:
        raise ConfigError(*lines)
    return kinds


def _name_problems(settings: PipelineSettings) -> list[str]:
    return [
        f"stages.{name}: a stage's name begins with a letter and has only small letters, digits, - and _"
        for name in settings.stages
        if not re.match(_STAGE_NAME, str(name))
    ]


def _reference_problems(pipeline: Pipeline) -> list[str]:
    lines = []
    for name, content in pipeline.settings.stages.items():
        needs = content.get("needs", [])
        if not isinstance(needs, list) or not all(isinstance(other, str) for other in needs):
            lines.append(f"stages.{name}.needs: expected a list of stages, got {needs!r}")
            continue
        for stage, output in references.find(content):
            known = pipeline.kinds.get(stage)
            shown = f"${{{stage}.{output}}}" if output else f"${{{stage}}}"
            if known is None:
                there = graph.near(stage, pipeline.kinds)
                lines.append(f"stages.{name}: {shown} refers to stage {stage!r}, which is not there{there}")
            elif output not in known.GIVES:
                gives = ", ".join(known.GIVES)
                kind = pipeline.settings.stages[stage]["kind"]
                lines.append(f"stages.{name}: {shown}: a stage of kind {kind} gives {gives}")
    if not lines:
        try:
            graph.ordered(pipeline.needs)
        except ConfigError as error:
            lines += error.problems
    return lines


def _clashes(pipeline: Pipeline) -> list[str]:
    of_kind: dict[type[StageSettings], dict[str, dict[str, Any]]] = {}
    for name, content in pipeline.settings.stages.items():
        of_kind.setdefault(pipeline.kinds[name], {})[name] = content
    return [line for kind, stages in of_kind.items() for line in kind.clashes(stages)]
