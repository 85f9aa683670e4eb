"""The checkpoints of a training worker: written while it trains, and resumed from."""

from __future__ import annotations

from sfumato.core.progress import Progress
from sfumato.errors import CheckpointError
from sfumato.runtime.training.rank import Rank
from sfumato.runtime.training.reading import Reading
from sfumato.runtime.training.reporting import Reporter
from sfumato.training import checkpoint as checkpoints
from sfumato.training.checkpoint import Checkpoint
from sfumato.training.loop import Trainer
from sfumato.training.resume import newest_whole
from sfumato.training.store import CheckpointStore, open_store


def newest(rank: Rank) -> Checkpoint | None:
    """The run's newest whole checkpoint, the same on every rank. Every rank calls it."""
    return newest_whole(_store_of(rank), rank.scratch, rank.ranks)


class RunCheckpoints:
    """Every rank has one and calls it in the same way. `found` is the checkpoint to start from."""

    def __init__(
        self, rank: Rank, reporter: Reporter, reading: Reading, trainer: Trainer, found: Checkpoint | None
    ) -> None:
        self._rank, self._reporter, self._reading, self._trainer = rank, reporter, reading, trainer
        self._found = found
        recipe = rank.recipe
        self._store = _store_of(rank)
        self._writer = checkpoints.Writer(
            self._store,
            keep=recipe.train.checkpoint.keep,
            recipe_digest=recipe.digest(),
            strategy=recipe.parallel.strategy,
            scratch=rank.scratch,
            recipe=recipe.counted(),
            keep_every=recipe.train.checkpoint.keep_every,
        )
        self._at = 0

    def resume(self) -> int:
        """Load the checkpoint found at the start; returns its images, 0 without one.

        Raises CheckpointError for one of another recipe.
        """
        return self._load(self._found)

    def go_back(self) -> int:
        """Load the newest whole checkpoint of now; returns its images, 0 without one."""
        self._writer.wait()
        return self._load(newest(self._rank))

    def _load(self, saved: Checkpoint | None) -> int:
        rank, scratch = self._rank, self._rank.scratch
        if saved is None:
            self._writer.goes_on_from(0)
            return 0
        checkpoints.check_recipe(self._store, saved, rank.recipe.digest(), rank.recipe)
        stored = checkpoints.tensors(self._store, saved, scratch)
        rank.strategy.load(stored)
        self._trainer.resume(saved.manifest.images, saved.manifest.step, stored)
        self._store.drop_copies(saved.name, scratch)
        self._writer.goes_on_from(saved.images)
        self._at = saved.images
        self._reporter.note(f"training resumes from the checkpoint at {saved.images:,} images")
        return saved.images

    def save(self, progress: Progress) -> None:
        """Start writing a checkpoint; waits only for the previous one."""
        self._at = progress.images
        self._trainer.log()
        self._reading.list_skipped()
        state = {**self._rank.strategy.state(), **self._trainer.state()}
        self._writer.save(state, images=progress.images, step=progress.step)
        self._reporter.failures(self._writer.failures)

    def save_once(self, progress: Progress) -> None:
        """As `save`, unless one of the same images exists."""
        if self._at != progress.images:
            self.save(progress)

    def save_now(self, progress: Progress) -> None:
        """As `save_once`, and wait until it is complete."""
        self.save_once(progress)
        self._writer.wait()

    def close(self, progress: Progress) -> None:
        """Wait for the last one. Raises CheckpointError if the end of the run could not be written."""
        self._writer.close()
        self._reporter.failures(self._writer.failures)
        if self._writer.failures and self._writer.reached < progress.images:
            raise CheckpointError(self._writer.failures[-1])


def _store_of(rank: Rank) -> CheckpointStore:
    return open_store(rank.job.checkpoint_uri(rank.recipe))
