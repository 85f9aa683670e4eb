"""The micro-batches of a training worker: from Ray Data, or read in this process."""

from __future__ import annotations

import ray.train

from sfumato.core.batch import MicroBatch
from sfumato.data.reading import local_reader
from sfumato.data.reading.batches import MicroBatches
from sfumato.data.reading.ray_reader import DATASET
from sfumato.runtime.training.bad_samples import SkippedSamples
from sfumato.runtime.training.rank import Rank
from sfumato.runtime.training.reporting import Reporter


class Reading:
    """Opens a rank's streams at training's position, and counts the samples that they skip."""

    def __init__(self, rank: Rank, reporter: Reporter) -> None:
        self._rank = rank
        self._reporter = reporter
        self._skipped = SkippedSamples(rank.folder, reporter.tracker)
        self._shares: MicroBatches | None = None

    def first_rows(self) -> MicroBatch:
        """The first micro-batch of a single worker, the same on every rank: the input of initialisation."""
        recipe, train = self._rank.recipe, self._rank.recipe.train
        shares = local_reader.read(
            recipe.data,
            self._rank.manifest,
            seed=recipe.seed,
            batch=train.batch,
            micro_batch=train.micro_batch,
        )
        return next(shares)[0]

    def start(self, images: int) -> MicroBatches:
        """This rank's shares of the global batches from the one at `images` on. The caller closes it."""
        recipe, ranks = self._rank.recipe, self._rank.ranks
        batch, micro_batch = recipe.train.batch, recipe.train.micro_batch
        if recipe.data.read_tasks:
            reader = ray.train.get_dataset_shard(DATASET)
            self._shares = reader.batches(images=images, batch=batch, micro_batch=micro_batch)
        else:
            self._shares = local_reader.read(
                recipe.data,
                self._rank.manifest,
                seed=recipe.seed,
                batch=batch,
                micro_batch=micro_batch,
                rank=ranks.rank,
                world_size=ranks.world_size,
                images=images,
            )
        return self._shares

    def list_skipped(self) -> None:
        """Called at every checkpoint, so that a resumed run knows what was skipped before."""
        if self._rank.recipe.data.on_error == "skip":
            faults = self._shares.faults if self._shares is not None else []
            self._skipped.add(self._rank.ranks.gather(faults))

    def finish(self) -> None:
        """Report how many samples were skipped."""
        self.list_skipped()
        self._reporter.note(self._skipped.text)
