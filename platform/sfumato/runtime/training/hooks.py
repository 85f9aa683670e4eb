"""The actions between the steps of a training worker, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from sfumato.core.progress import Progress
from sfumato.evaluation.decisions.ending import may_end
from sfumato.runtime.runs import moments
from sfumato.runtime.runs.run_folder import RunFolder, snapshot_folder
from sfumato.runtime.training.backpressure import Brake
from sfumato.runtime.training.checkpoints import RunCheckpoints
from sfumato.runtime.training.ema_snapshots import AveragesKeeper
from sfumato.runtime.training.heartbeat import Pulse
from sfumato.runtime.training.preemption import SaveOnNotice
from sfumato.runtime.training.previews import Previews
from sfumato.runtime.training.rank import Rank
from sfumato.runtime.training.reporting import Reporter
from sfumato.training.loop import Hook

Action = Callable[[Progress], None]


class StoppedEarly(Exception):
    """Ends the loop between two steps, on all ranks at once."""


class EarlyStop:
    """Raises StoppedEarly once an evaluation has requested the end, after running `last` for that step."""

    def __init__(self, rank: Rank, reporter: Reporter, last: Sequence[Action]) -> None:
        self._rank, self._reporter, self._last = rank, reporter, last

    def __call__(self, progress: Progress) -> None:
        """All ranks stop at the same step: only rank 0 reads the board."""
        if not may_end(self._rank.recipe.evaluate):
            return
        ranks, board = self._rank.ranks, self._rank.job.board
        reason = ranks.agree(ray.get(board.stopping.remote()) if ranks.leads else None)
        if reason is None or progress.images == 0 or progress.images >= progress.total_images:
            return
        self._reporter.note(f"training stops early at {progress.images:,} images: {reason}")
        for action in self._last:
            action(progress)
        raise StoppedEarly


class FirstStep:
    """Records the moment of the first step."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder: RunFolder | None = folder

    def __call__(self, progress: Progress) -> None:
        if self._folder is not None:
            moments.mark("first step", self._folder)
            self._folder = None


def hooks_of(
    rank: Rank,
    *,
    checkpoints: RunCheckpoints,
    averages: AveragesKeeper,
    previews: Previews,
    early_stop: EarlyStop,
    pulse: Pulse,
) -> list[Hook]:
    """The time of a step is limited, that of the hooks between two steps is not.

    The early stop comes last, since it ends the loop.
    """
    train, evaluate, board = rank.recipe.train, rank.recipe.evaluate, rank.job.board
    ranks = rank.ranks
    hooks = [Hook(train.checkpoint.every, checkpoints.save)]
    if train.preview_samples:
        hooks.append(Hook(train.preview_every, previews))
    hooks += averages.hooks()
    if evaluate.every is not None:
        brake = Brake(board, evaluate.ahead, ranks.leads, ranks.agree)
        hooks += [Hook(evaluate.every, action) for action in (_snapshot(rank), brake)]
    if may_end(evaluate):
        hooks.append(Hook(train.log_every, early_stop))
    found = [Hook(hook.every, pulse.aside(hook.action)) for hook in hooks]
    found.append(Hook(1, pulse.stepped))
    if rank.job.notices:
        save = pulse.aside(checkpoints.save_now)
        notice = SaveOnNotice(board, leads=ranks.leads, agree=ranks.agree, save=save)
        found += [Hook(1, notice), Hook(1, pulse.stepped)]
    return found


def _snapshot(rank: Rank) -> Action:
    """Writes the model in its present state, for an evaluation elsewhere (`runtime.training.validation`)."""

    def write(progress: Progress) -> None:
        rank.save_model(snapshot_folder(rank.folder, progress.images), progress)

    return write
