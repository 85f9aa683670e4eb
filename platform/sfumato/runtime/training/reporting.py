"""A training worker's reports: figures to MLflow and the board, notes to the user. Only rank 0 reports."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.core.progress import Progress
from sfumato.errors import CheckpointError, Interrupted
from sfumato.runtime.training.compute import Ledger
from sfumato.runtime.training.progress_actor import BoardHandler
from sfumato.runtime.training.rank import Rank


class Reporter:
    """Every rank has one and calls it in the same way."""

    def __init__(self, rank: Rank) -> None:
        leads = rank.ranks.leads
        self._folder, self._board, self._leads = rank.folder, rank.job.board, leads
        self._token = rank.folder.claim() if leads else ""
        self._handler = BoardHandler(rank.job.board) if leads else None
        self._failures: set[str] = set()
        self.tracker = rank.job.tracker.open() if leads else None
        self.attempt = rank.ranks.agree(self._token)
        """Distinguishes this group of workers from earlier ones, on every rank."""
        parallel = rank.recipe.parallel
        self._ledger = Ledger(
            rank.folder, self.attempt, rank.ranks, parallel, gpu=parallel.gpus_per_worker > 0
        )

    def progress(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Raise Interrupted if a later attempt has taken over the run."""
        if self.tracker is None:
            self._ledger.note(progress.images)
            return
        if not self._folder.holds(self._token):
            if not self._folder.path.is_dir():
                raise CheckpointError(f"{self._folder.path} is gone: it was deleted in mid-training")
            raise Interrupted("another process has taken over this run")
        self._ledger.note(progress.images)
        self.tracker.metrics(metrics, step=progress.images)
        self._board.progress.remote(progress.images, progress.total_images, metrics)

    def note(self, text: str) -> None:
        if self._leads and text:
            self._board.note.remote(text)

    def failures(self, failures: Sequence[str]) -> None:
        """Report each failed write once."""
        for failure in failures:
            if failure not in self._failures:
                self._failures.add(failure)
                self.note(f"{failure}; what was written before it stays, training continues")

    def close(self, progress: Progress) -> None:
        """After the last step."""
        self._ledger.note(progress.images, last=True)
        if self.tracker is not None:
            self.tracker.close()
