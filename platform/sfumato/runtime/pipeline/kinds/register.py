"""Stage `register`: a trained model into the model registry, under the alias that a gate gave it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.runtime.commands import stages
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work, digest
from sfumato.runtime.pipeline.trained_run import TrainedRun
from sfumato.tracking.champion import has_version, set_alias
from sfumato.tracking.config import TrackingSettings


class RegisterStage(StageSettings):
    """Register a run's model. Gives `name` and `version`."""

    GIVES: ClassVar[tuple[str, ...]] = ("name", "version")
    OWN_RUN: ClassVar[bool] = True

    kind: Literal["register"]
    run: str = Field(min_length=1, description="A trained run: ${stage.run}, its name or folder.")
    name: str | None = Field(
        None, description="Registered model: ${gate.name}, or a name; null: the recipe's `registry.name`."
    )
    alias: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_$<>{}.\-]+$", description="Alias of the new version: ${gate.alias}."
    )

    base: str | None = Field(
        None, description="Where the base of an adapter is, if it is no longer where it was in training."
    )

    def identity(self, place: PipelinePlace) -> dict[str, Any]:
        trained = self._trained(place)
        name = trained.recipe.registry.name or trained.recipe.name
        return {"model": trained.digest, "name": name, "alias": self.alias}

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        settings = place.tracking or TrackingSettings()
        return has_version(settings, outputs["name"], outputs["version"], root=place.root)

    def demand(self, place: PipelinePlace) -> Demand:
        return Demand(run=self.run)

    def perform(self, work: Work) -> Outputs:
        trained = self._trained(work.place)
        with trained.session(work) as session:
            if work.again:
                session.folder.forget_stage("register")
            result = stages.register(session, work.place.found(self.base))
        name, version = str(result["name"]), str(result["version"])
        if self.alias is not None:
            replaced = set_alias(session.recipe.tracking, name, self.alias, version, root=work.place.root)
            was = f", which was version {replaced}" if replaced not in (None, version) else ""
            work.display.note(f"{name} version {version} is {self.alias}{was}")
        return {
            "name": name,
            "version": version,
            "alias": self.alias,
            "digest": digest([name, version, self.alias]),
            "mlflow_run_id": session.tracker.run_id,
        }

    def _trained(self, place: PipelinePlace) -> TrainedRun:
        changes: dict[str, Any] = {"registry.enabled": True}
        if self.name is not None:
            changes["registry.name"] = self.name
        return TrainedRun.of(self.run, changes, place)


COMPONENT = RegisterStage
