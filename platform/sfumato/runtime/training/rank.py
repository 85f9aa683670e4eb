"""The context shared by all parts of a training worker: the run, its model, and its rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sfumato import parallel as strategies
from sfumato.core.batch import DataSpec
from sfumato.core.family import Family
from sfumato.core.progress import Progress
from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.parallel import Placement, Strategy
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.job import TrainJob
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.ranks import Ranks


@dataclass(frozen=True)
class Rank:
    """One worker of a training run."""

    job: TrainJob
    scratch: Path
    recipe: Recipe
    folder: RunFolder
    manifest: Manifest
    spec: DataSpec
    family: Family
    strategy: Strategy
    ranks: Ranks

    @classmethod
    def of(cls, job: TrainJob, scratch: Path) -> Self:
        """Read the job's recipe and data set, and make the strategy, without networks yet."""
        recipe = job.load_recipe()
        manifest = Manifest.load(recipe.data.path)
        spec = spec_of(recipe.data, manifest)
        strategy = strategies.make(
            recipe.parallel,
            Placement.current(gpu=recipe.parallel.gpus_per_worker > 0),
            compile=recipe.train.compile,
            activation_checkpointing=recipe.train.activation_checkpointing,
        )
        family = recipe.model.build(spec)
        return cls(job, scratch, recipe, job.folder(), manifest, spec, family, strategy, Ranks.current())

    def save_model(self, folder: Path, progress: Progress) -> None:
        """Export what sampling needs. Every rank calls it; rank 0 writes."""
        weights = self.strategy.weights(self.family.samplers)
        if self.ranks.leads:
            save_model_folder(
                folder,
                self.recipe.model,
                self.spec,
                weights,
                name=self.recipe.name,
                progress=progress,
                trained_on=self.manifest.digest,
                provenance=self.recipe.marking(),
            )
