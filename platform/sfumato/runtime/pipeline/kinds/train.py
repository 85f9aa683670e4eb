"""Stage `train`: a recipe's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.commands import stages
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work
from sfumato.runtime.pipeline.trained_run import model_digest
from sfumato.runtime.runs import pretrained
from sfumato.runtime.runs.session import absolute, open_session


class TrainStage(StageSettings):
    """Train a recipe. Gives `run` (its folder), `model` (its model folder) and `data` (what it read)."""

    GIVES: ClassVar[tuple[str, ...]] = ("run", "model", "data")
    OWN_RUN: ClassVar[bool] = True

    kind: Literal["train"]
    recipe: str = Field(min_length=1, description="Recipe file, relative to the pipeline's folder.")
    set: dict[str, Any] = Field(
        {},
        description="Fields of the recipe to change, by dotted name, for example data.path: ${images.data}.",
    )

    def check(self, place: PipelinePlace) -> None:
        recipe = self._recipe(place)
        recipe.check()
        if place.tracking is None and recipe.tracking.uri is not None:
            raise ConfigError(
                f"{self.recipe} has tracking.uri: set `tracking:` of the pipeline, too, so that its run "
                "and those of its stages are in one store"
            )

    def identity(self, place: PipelinePlace) -> dict[str, Any] | None:
        """The recipe's identity and the digests of its data; unknown until the data is packed."""
        recipe = self._resolved(place)
        sets = [recipe.data.path, *(other.path for other in recipe.data.mix)]
        if not Manifest.exists(sets[0]):
            return None
        return {"recipe": recipe.identity(), "data": [Manifest.load(data).digest for data in sets]}

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        digest: str = outputs["digest"]
        return model_digest(outputs["model"]) == digest

    def demand(self, place: PipelinePlace) -> Demand:
        parallel = (recipe := self._recipe(place)).parallel
        cpus = max(ray_cluster.cpus_to_train(recipe), ray_cluster.cpus_to_evaluate(recipe))
        gpus = parallel.workers * parallel.gpus_per_worker
        if recipe.evaluate.every is not None:
            gpus += recipe.evaluate.actors_during * recipe.evaluate.gpus_per_actor
        return Demand(cpus, gpus)

    def use(self, place: PipelinePlace, trained: Mapping[str, Recipe]) -> Use:
        return Use(recipe=self._recipe(place), trains=True)

    def perform(self, work: Work) -> Outputs:
        recipe = self._recipe(work.place)
        with open_session(
            recipe, work.display, root=work.place.root, fresh=work.again and work.at is None, at=work.at
        ) as session:
            work.began(session.folder.path)
            session.tracker.tags(work.tags)
            with stages.cluster_to_train(session):
                summary = stages.train(session)
        return {
            "run": str(session.folder.path),
            "model": str(session.folder.model),
            "data": session.recipe.data.path,
            "digest": model_digest(str(session.folder.model)),
            "images": summary["images"],
            "seconds": summary["seconds"],
            "mlflow_run_id": session.tracker.run_id,
        }

    def _recipe(self, place: PipelinePlace) -> Recipe:
        return place.recipe(place.folder / Path(self.recipe), self.set)

    def _resolved(self, place: PipelinePlace) -> Recipe:
        return pretrained.resolved(absolute(self._recipe(place), place.root), place.root)


COMPONENT = TrainStage
