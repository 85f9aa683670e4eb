"""Stage `evaluate`: the figures of a trained run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from sfumato.core.validation import explain
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.report import FILE, read_report
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.cluster.use import Actors, Use
from sfumato.runtime.commands import stages
from sfumato.runtime.pipeline import references
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work, digest
from sfumato.runtime.pipeline.trained_run import TrainedRun


class EvaluateStage(StageSettings):
    """Measure a run as its recipe says. Gives `report` (the folder of report.json), `run` and `model`."""

    GIVES: ClassVar[tuple[str, ...]] = ("report", "run", "model")
    OWN_RUN: ClassVar[bool] = True

    kind: Literal["evaluate"]
    run: str = Field(min_length=1, description="A trained run: ${stage.run}, its name or folder.")
    base: str | None = Field(
        None, description="Where the base of an adapter is, if it is no longer where it was in training."
    )
    set: dict[str, Any] = Field(
        {}, description="Fields of `evaluate:` to change, for example samples: 5000 or metrics: [precision]."
    )

    @classmethod
    def clashes(cls, stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
        lines, first = [], dict[str, str]()
        for name, content in stages.items():
            other = first.setdefault(str(content.get("run")), name)
            if other != name:
                lines.append(
                    f"stages.{name}: stage {other} evaluates the same run, which holds one evaluation; "
                    "make them one stage"
                )
        return lines

    def check(self, place: PipelinePlace) -> None:
        try:
            EvaluateSettings.model_validate(self.set)
        except ValidationError as error:
            raise ConfigError(*explain(error, EvaluateSettings, ("set",))) from None

    def identity(self, place: PipelinePlace) -> dict[str, Any]:
        trained = self._trained(place)
        return {
            "model": trained.digest,
            "data": Manifest.load(trained.recipe.data.path).digest,
            "settings": json.loads(trained.recipe.evaluate.identity()),
        }

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        report = Path(outputs["report"])
        return (report / FILE).is_file() and _figures(report) == outputs["digest"]

    def demand(self, place: PipelinePlace) -> Demand:
        if not Path(self.run).is_dir():  # its training is yet to come, and takes as much as the recipe's own
            settings = EvaluateSettings.model_validate(self.set)
            return Demand(ray_cluster.cpus_of(settings), _gpus(settings))
        trained = self._trained(place)
        settings = trained.recipe.evaluate
        return Demand(ray_cluster.cpus_of(settings), _gpus(settings), str(trained.folder.path))

    def use(self, place: PipelinePlace, trained: Mapping[str, Recipe]) -> Use:
        earlier = trained.get(references.stage_of(self.run) or "")
        if earlier is not None:
            evaluate = EvaluateSettings.model_validate({**earlier.evaluate.model_dump(), **self.set})
            return Use(recipe=earlier.model_copy(update={"evaluate": evaluate}), measures=True)
        settings = EvaluateSettings.model_validate(self.set)
        count = 1 if settings.actors == "auto" else settings.actors
        fields = "evaluate.actors, evaluate.*_per_actor"
        return Use(actors=Actors(count, settings.cpus_per_actor, settings.gpus_per_actor, fields))

    def perform(self, work: Work) -> Outputs:
        trained = self._trained(work.place)
        with trained.session(work) as session:
            folder = session.folder
            if work.again:
                folder.forget_stage("evaluate")
                shutil.rmtree(folder.path / "evaluation", ignore_errors=True)
            with stages.cluster_to_evaluate(session):
                result = stages.evaluate(session, work.place.found(self.base))
        report = folder.path / "evaluation"
        return {
            "report": str(report),
            "run": str(folder.path),
            "model": str(folder.model),
            "digest": _figures(report),
            "metrics": result["metrics"],
            "intervals": result["intervals"],
            "samples": result["samples"],
            "mlflow_run_id": session.tracker.run_id,
        }

    def _trained(self, place: PipelinePlace) -> TrainedRun:
        return TrainedRun.of(self.run, {"evaluate": self.set} if self.set else {}, place)


def _gpus(settings: EvaluateSettings) -> float:
    return (1 if settings.actors == "auto" else settings.actors) * settings.gpus_per_actor


def _figures(folder: Path) -> str:
    """A digest of what was measured, on what and how; not of how long it took."""
    report = read_report(folder)
    return digest([dict(report.metrics), report.samples, report.reference_digest, report.source_digest])


COMPONENT = EvaluateStage
