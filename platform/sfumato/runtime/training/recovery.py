"""Rolls back to the last checkpoint, once, if too many gradients are not finite.

A machine's fault does not recur. A recipe's fault does, on the same batch.
"""

from __future__ import annotations

from sfumato.runtime.training import bad_samples
from sfumato.runtime.training.checkpoints import RunCheckpoints
from sfumato.runtime.training.rank import Rank
from sfumato.runtime.training.reporting import Reporter
from sfumato.training.skips import NotFinite


class Recovery:
    """Every rank has one and calls it in the same way."""

    def __init__(self, rank: Rank, reporter: Reporter, checkpoints: RunCheckpoints) -> None:
        self._rank, self._reporter, self._checkpoints = rank, reporter, checkpoints
        self._failed: int | None = None
        """Images at the batch that last caused a rollback."""

    def go_back(self, error: NotFinite) -> None:
        """Load the last checkpoint. Raises TrainingError, naming images, if that has not helped before or
        there is none."""
        again = self._failed is not None and error.bad.images <= self._failed
        if again or not self._checkpoints.go_back():
            raise bad_samples.explained(error, self._rank.recipe, self._rank.manifest) from error
        self._failed = error.bad.images
        self._reporter.note(f"{error}: back to the last checkpoint")
