"""The program of each training worker: build, resume, train, keep checkpoints, export."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
import torch

from sfumato.core.allocator import keep_freed_memory
from sfumato.errors import SfumatoError
from sfumato.runtime.cluster.scratch import scratch_folder
from sfumato.runtime.runs import moments
from sfumato.runtime.training.checkpoints import RunCheckpoints, newest
from sfumato.runtime.training.ema_snapshots import AveragesKeeper, averages_of
from sfumato.runtime.training.heartbeat import Pulse
from sfumato.runtime.training.hooks import EarlyStop, FirstStep, StoppedEarly, hooks_of
from sfumato.runtime.training.job import TrainJob
from sfumato.runtime.training.previews import Previews
from sfumato.runtime.training.rank import Rank
from sfumato.runtime.training.reading import Reading
from sfumato.runtime.training.recovery import Recovery
from sfumato.runtime.training.reporting import Reporter
from sfumato.training.loop import Hook, Trainer, install
from sfumato.training.skips import NotFinite


@contextlib.contextmanager
def opened(job: TrainJob) -> Iterator[Worker | None]:
    """The worker of this process, with a scratch folder and a pulse while the block runs.

    An error that no retry would cure is posted on the board. A worker group that is restarted nevertheless
    finds it there and gets None.
    """
    if ray.get(job.board.failed.remote()) is not None:
        yield None
        return
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    with scratch_folder("sfumato-worker-") as scratch:
        try:
            rank = Rank.of(job, scratch)
            if rank.ranks.leads:
                moments.mark("worker runs", rank.folder)
            reporter = Reporter(rank)
            pulse = Pulse(job.board, reporter.attempt, rank.ranks.rank, rank.recipe.parallel.hang_timeout)
            with pulse.beating():
                yield Worker(rank, reporter, pulse)
        except SfumatoError as error:
            ray.get(job.board.fail.remote(type(error).__name__, str(error)))
            raise


class Worker:
    """Puts the parts of a rank together and runs them."""

    def __init__(self, rank: Rank, reporter: Reporter, pulse: Pulse) -> None:
        recipe, averaged = rank.recipe, averages_of(rank.recipe, rank.family)
        self._rank, self._reporter, self._pulse = rank, reporter, pulse
        self._reading = Reading(rank, reporter)
        found = newest(rank)
        install(
            rank.family,
            rank.strategy,
            recipe.seed,
            first=self._reading.first_rows,
            averages=averaged,
            initial=found is None,
        )
        self._trainer = Trainer(
            rank.family,
            rank.strategy,
            recipe.train,
            seed=recipe.seed,
            streams=recipe.data.streams,
            report=reporter.progress,
            averages=averaged,
        )
        self._checkpoints = RunCheckpoints(rank, reporter, self._reading, self._trainer, found)
        self._averages = AveragesKeeper(
            recipe, rank.strategy, rank.folder, rank.scratch, tell=reporter.failures
        )
        self._previews = Previews(
            recipe, rank.family, rank.strategy, rank.spec, rank.folder, reporter.tracker
        )
        last = (self._checkpoints.save_once, self._averages.save_once)
        self._early_stop = EarlyStop(rank, reporter, last)
        self._recovery = Recovery(rank, reporter, self._checkpoints)
        self._trainer.add_hooks(
            hooks_of(
                rank,
                checkpoints=self._checkpoints,
                averages=self._averages,
                previews=self._previews,
                early_stop=self._early_stop,
                pulse=pulse,
            )
        )

    def train(self) -> dict[str, Any] | None:
        """Train from the newest checkpoint to the end, or until an evaluation stops it early.

        Returns rank 0's summary.
        """
        resumed = self._checkpoints.resume()
        shares = self._reading.start(resumed)  # the first blocks arrive while the preview is drawn
        if resumed == 0 and self._rank.recipe.train.preview_samples:
            self._previews(self._trainer.progress)  # the first picture of the slider: the untrained network
        started = time.perf_counter()
        if self._rank.ranks.leads:
            moments.mark("networks built", self._rank.folder)
            self._trainer.add_hooks([Hook(1, FirstStep(self._rank.folder))])
        while True:
            try:
                with contextlib.closing(shares):
                    self._early_stop(self._trainer.progress)  # a run that had stopped, started again
                    self._trainer.run(shares)
            except StoppedEarly:
                pass  # raised in a hook: the pulse rests
            except NotFinite as error:
                self._pulse.rest()
                self._recovery.go_back(error)
                shares = self._reading.start(self._trainer.progress.images)
                continue
            break
        self._reading.finish()
        return self._finish(resumed, time.perf_counter() - started)

    def _finish(self, resumed: int, seconds: float) -> dict[str, Any] | None:
        progress = self._trainer.progress
        self._averages.close()
        self._checkpoints.close(progress)
        self._rank.save_model(self._rank.folder.model, progress)
        self._reporter.close(progress)
        if not self._rank.ranks.leads:
            return None
        return {
            "images": progress.images,
            "steps": progress.step,
            "seconds": seconds,
            "images_per_second": (progress.images - resumed) / seconds,
            "resumed_from": resumed,
        }
