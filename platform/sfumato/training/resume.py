"""Finds the checkpoint that a run resumes from: the newest whole one, agreed on by all ranks."""

from __future__ import annotations

import logging
from pathlib import Path

from sfumato.errors import CheckpointError
from sfumato.training.checkpoint import Checkpoint, complete, said, sizes_and_sums
from sfumato.training.ranks import ALONE, Ranks
from sfumato.training.store import CheckpointStore, writer_of

log = logging.getLogger(__name__)


def newest_whole(store: CheckpointStore, scratch: Path, ranks: Ranks = ALONE) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named and the one before it tried.

    Every rank calls it and gets the same result. Only rank 0 lists the checkpoints, since the ranks see the
    store at different moments. Each rank reads its share of the files, and all skip a checkpoint in which any
    of them finds damage. Raises OSError on all ranks if any cannot read its share.
    """
    for checkpoint in ranks.agree(complete(store) if ranks.leads else []):
        found = ranks.gather(_check_share(store, checkpoint, scratch, ranks))
        if unread := next((problem for problem in found if isinstance(problem, _Unread)), None):
            raise OSError(unread)
        damage = [problem for problem in found if problem is not None]
        if not damage:
            return checkpoint
        store.drop_copies(checkpoint.name, scratch)
        if ranks.leads:
            log.warning("%s; trying the checkpoint before it", damage[0])
    return None


class _Unread(str):
    """Why a file could not be read, which does not mean that it is damaged."""


def _check_share(store: CheckpointStore, checkpoint: Checkpoint, scratch: Path, ranks: Ranks) -> str | None:
    """The problem with this rank's share of a checkpoint's files; None if there is none."""
    share = {
        name: value
        for name, value in sizes_and_sums(checkpoint).items()
        if writer_of(name) % ranks.world_size == ranks.rank
    }
    try:
        store.materialise(checkpoint.name, share, scratch)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return _Unread(f"{store.describe(checkpoint.name)}: {said(error)}")
    return None
