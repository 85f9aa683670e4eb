"""What each training worker runs: build, resume, train, keep checkpoints, export."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from sfumato import parallel as strategies
from sfumato.core.batch import MicroBatch
from sfumato.core.progress import Progress
from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.data.reading.ray_reader import DATASET
from sfumato.errors import CheckpointError, Interrupted, SfumatoError
from sfumato.parallel import Placement, Strategy
from sfumato.runtime.cluster.allocator import keep_freed_memory
from sfumato.runtime.cluster.scratch import scratch_folder
from sfumato.runtime.runs.run_folder import snapshot_folder
from sfumato.runtime.training import bad_samples
from sfumato.runtime.training.backpressure import Brake
from sfumato.runtime.training.ema_snapshots import AveragesKeeper, averages_of
from sfumato.runtime.training.heartbeat import Pulse
from sfumato.runtime.training.job import TrainJob
from sfumato.runtime.training.preemption import SaveOnNotice
from sfumato.runtime.training.previews import Previews
from sfumato.runtime.training.progress_actor import BoardHandler
from sfumato.runtime.training.skipped import SkippedSamples
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training import checkpoint as checkpoints
from sfumato.training.loop import Hook, Shares, Trainer, install
from sfumato.training.ranks import Ranks
from sfumato.training.resume import newest_whole
from sfumato.training.skips import NotFinite
from sfumato.training.store import Store, open_store

log = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Entry point on every rank; returns rank 0's summary.

    An error that no retry would mend is posted on the board, and a worker group that is started again
    all the same finds it there and returns at once.
    """
    job: TrainJob = config["job"]
    if ray.get(job.board.failed.remote()) is not None:
        return None
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    with scratch_folder("sfumato-worker-") as scratch:
        try:
            return _Worker(job, scratch).run()
        except SfumatoError as error:
            ray.get(job.board.fail.remote(type(error).__name__, str(error)))
            raise


class _EarlyStop(Exception):
    """Ends the loop between two steps, on all ranks alike."""


class _Worker:
    def __init__(self, job: TrainJob, scratch: Path) -> None:
        self._job = job
        self._scratch = scratch
        self._recipe = job.load_recipe()
        self._folder = job.folder()
        self._manifest = Manifest.load(self._recipe.data.path)
        self._spec = spec_of(self._recipe.data, self._manifest)
        self._family = self._recipe.model.build(self._spec)
        parallel = self._recipe.parallel
        placement = Placement.current(gpu=parallel.gpus_per_worker > 0)
        self._strategy: Strategy = strategies.make(
            parallel,
            placement,
            compile=self._recipe.train.compile,
            activation_checkpointing=self._recipe.train.activation_checkpointing,
        )
        self._leads = self._strategy.placement.rank == 0
        self._token = self._folder.claim() if self._leads else ""
        self._tracker = job.tracker.open() if self._leads else None
        self._handler = BoardHandler(job.board) if self._leads else None
        self._skipped = SkippedSamples(self._folder, self._tracker)
        self._previews = Previews(
            self._recipe, self._family, self._strategy, self._spec, self._folder, self._tracker
        )
        rank, attempt = self._strategy.placement.rank, self._agree(self._token)
        self._checkpointed = 0
        self._said: set[str] = set()
        self._pulse = Pulse(job.board, attempt, rank, parallel.hang_timeout)

    def run(self) -> dict[str, Any] | None:
        with self._pulse.beating():
            return self._run()

    def _run(self) -> dict[str, Any] | None:
        recipe = self._recipe
        averages = averages_of(recipe, self._family)
        install(self._family, self._strategy, recipe.seed, first=self._first_rows, averages=averages)
        store = open_store(self._job.checkpoint_uri(recipe))
        self._writer = checkpoints.Writer(
            store,
            keep=recipe.train.checkpoint.keep,
            recipe_digest=recipe.digest(),
            strategy=recipe.parallel.strategy,
            scratch=self._scratch,
            recipe=recipe.counted(),
            keep_every=recipe.train.checkpoint.keep_every,
        )
        self._keeper = AveragesKeeper(recipe, self._strategy, self._folder, self._scratch)
        self._trainer = Trainer(
            self._family,
            self._strategy,
            recipe.train,
            seed=recipe.seed,
            streams=recipe.data.streams,
            hooks=self._all_hooks(),
            report=self._report,
            averages=averages,
        )
        resumed = self._resume(store)
        self._read()  # the first blocks arrive while the preview is drawn
        if resumed == 0 and recipe.train.preview_samples:
            self._previews(self._trainer.progress)  # the first picture of the slider: the untrained network
        started = time.perf_counter()
        progress = self._train_through(store)
        seconds = time.perf_counter() - started
        self._keeper.close()
        self._writer.close()
        self._say_failures()
        if self._writer.failures and self._writer.reached < progress.images:
            raise CheckpointError(self._writer.failures[-1])
        self._save_model(self._folder.model, progress)
        if self._tracker is None:
            return None
        self._tracker.close()
        return {
            "images": progress.images,
            "steps": progress.step,
            "seconds": seconds,
            "images_per_second": (progress.images - resumed) / seconds,
            "resumed_from": resumed,
        }

    def _first_rows(self) -> MicroBatch:
        """The first micro-batch of a single worker, the same on every rank: what initialisation looks at."""
        recipe, train = self._recipe, self._recipe.train
        shares = local_reader.read(
            recipe.data, self._manifest, seed=recipe.seed, batch=train.batch, micro_batch=train.micro_batch
        )
        return next(shares)[0]

    def _all_hooks(self) -> list[Hook]:
        """What a step may cost is limited, what the hooks between two steps cost is not."""
        hooks = [*self._hooks(), *self._keeper.hooks()]
        aside = [Hook(hook.every, self._pulse.aside(hook.action)) for hook in hooks]
        return [*aside, Hook(1, self._pulse.stepped), *self._on_notice()]

    def _hooks(self) -> list[Hook]:
        settings = self._recipe.train
        hooks = [Hook(settings.checkpoint.every, self._checkpoint)]
        if settings.preview_samples:
            hooks.append(Hook(settings.preview_every, self._previews))
        if self._recipe.evaluate.every is not None:
            brake = Brake(self._job.board, self._recipe.evaluate.ahead, self._leads, self._agree)
            hooks += [Hook(self._recipe.evaluate.every, action) for action in (self._snapshot, brake)]
        if self._recipe.evaluate.early_stop is not None:
            hooks.append(Hook(settings.log_every, self._stop_if_asked))
        return hooks

    def _on_notice(self) -> list[Hook]:
        if not self._job.notices:
            return []
        save, board = self._checkpoint_now, self._job.board
        notice = SaveOnNotice(board, leads=self._leads, agree=self._agree, save=save)
        return [Hook(1, notice), Hook(1, self._pulse.stepped)]

    def _train_through(self, store: Store) -> Progress:
        """To the end; once back to the last checkpoint where too many gradients are not finite.

        What a machine got wrong does not happen again. What the recipe got wrong does, on the same batch.
        """
        failed: int | None = None
        while True:
            try:
                with contextlib.closing(self._reading):
                    progress = self._train(self._reading)
            except NotFinite as error:
                self._pulse.rest()
                self._writer.wait()
                again = failed is not None and error.bad.images <= failed
                if again or not self._resume(store):
                    raise bad_samples.explained(error, self._recipe, self._manifest) from error
                failed = error.bad.images
                self._note(f"{error}: back to the last checkpoint")
                self._read()
            else:
                self._list_skipped()
                self._note(self._skipped.text)
                return progress

    def _read(self) -> None:
        recipe, images = self._recipe, self._trainer.progress.images
        batch, micro_batch = recipe.train.batch, recipe.train.micro_batch
        if recipe.data.read_tasks:
            reader = ray.train.get_dataset_shard(DATASET)
            self._reading = reader.batches(images=images, batch=batch, micro_batch=micro_batch)
            return
        place = self._strategy.placement
        self._reading = local_reader.read(
            recipe.data,
            self._manifest,
            seed=recipe.seed,
            batch=batch,
            micro_batch=micro_batch,
            rank=place.rank,
            world_size=place.world_size,
            images=images,
        )

    def _train(self, shares: Shares) -> Progress:
        """To the end, or to where an evaluation says that it gets no better."""
        try:
            if self._recipe.evaluate.early_stop is not None:
                self._stop_if_asked(self._trainer.progress)  # a run that had stopped, started again
            return self._trainer.run(shares)
        except _EarlyStop:
            return self._trainer.progress  # raised in a hook: the pulse rests

    def _stop_if_asked(self, progress: Progress) -> None:
        """All ranks at the same step, since rank 0 alone looks at the board."""
        reason = self._agree(ray.get(self._job.board.stopping.remote()) if self._leads else None)
        if reason is None or progress.images == 0 or progress.images >= progress.total_images:
            return
        self._note(f"training stops early at {progress.images:,} images: {reason}")
        if self._checkpointed != progress.images:
            self._checkpoint(progress)
        raise _EarlyStop

    def _snapshot(self, progress: Progress) -> None:
        """The model as it is, for an evaluation elsewhere (`runtime.training.validation`)."""
        self._save_model(snapshot_folder(self._folder, progress.images), progress)

    def _resume(self, store: Store) -> int:
        """Load the newest whole checkpoint, the same on every rank; the images it stands at."""
        saved = newest_whole(store, self._scratch, Ranks.current())
        if saved is None:
            self._writer.goes_on_from(0)
            return 0
        checkpoints.check_recipe(store, saved, self._recipe.digest(), self._recipe)
        stored = checkpoints.tensors(store, saved, self._scratch)
        self._strategy.load(stored)
        self._trainer.resume(saved.manifest.images, saved.manifest.step, stored)
        store.drop_copies(saved.name, self._scratch)
        self._writer.goes_on_from(saved.images)
        self._note(f"training goes on from the checkpoint at {saved.images:,} images")
        return saved.images

    def _agree(self, value: Any) -> Any:
        return self._gather(value)[0]

    def _report(self, progress: Progress, metrics: dict[str, float]) -> None:
        if self._tracker is None:
            return
        if not self._folder.holds(self._token):
            raise Interrupted("another process has taken over this run")
        self._tracker.metrics(metrics, step=progress.images)
        self._job.board.progress.remote(progress.images, progress.total_images, metrics)

    def _checkpoint_now(self, progress: Progress) -> None:
        """Wait until it counts. Where the step has one anyway, that one does."""
        self._pulse.rest()
        if self._checkpointed != progress.images:
            self._checkpoint(progress)
        self._writer.wait()

    def _checkpoint(self, progress: Progress) -> None:
        self._checkpointed = progress.images
        self._trainer.log()
        self._list_skipped()
        state = {**self._strategy.state(), **self._trainer.state()}
        self._writer.save(state, images=progress.images, step=progress.step)
        self._say_failures()

    def _say_failures(self) -> None:
        """Each once: what could not be written, of checkpoints and of averages."""
        failures = [*self._writer.failures, *(f"averages: {failure}" for failure in self._keeper.failures)]
        for failure in failures:
            if failure not in self._said:
                self._said.add(failure)
                self._note(f"{failure}; what was written before it stays, training goes on")

    def _save_model(self, folder: Path, progress: Progress) -> None:
        weights = self._strategy.weights(self._family.samplers)
        recipe, manifest = self._recipe, self._manifest
        if self._leads:
            save_model_folder(
                folder,
                recipe.model,
                self._spec,
                weights,
                name=recipe.name,
                progress=progress,
                trained_on=manifest.digest,
            )

    def _list_skipped(self) -> None:
        """At every checkpoint, so that a run that goes on from it knows what was skipped before."""
        if self._recipe.data.on_error == "skip":
            self._skipped.add(self._gather(self._reading.faults))

    def _gather(self, value: Any) -> list[Any]:
        if self._strategy.placement.world_size == 1:
            return [value]
        values: list[Any] = [None] * self._strategy.placement.world_size
        dist.all_gather_object(values, value)
        return values

    def _note(self, text: str) -> None:
        if self._leads and text:
            self._job.board.note.remote(text)
