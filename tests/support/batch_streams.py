"""Streams of batches of one data set from two places, and that they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from sfumato.core.batch import MicroBatch
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader

BATCH = 64


def reading(
    folder: str | Path, manifest: Manifest | None = None, *, images: int = 0
) -> Iterator[list[MicroBatch]]:
    """The folder's batches from the one at `images` on; the manifest is the folder's if none is given."""
    settings = DataSettings(path=str(folder), streams=4, shuffle_window=64)
    return local_reader.read(settings, manifest or Manifest.load(folder), seed=5, batch=BATCH, images=images)


def assert_same(one: Iterator[list[MicroBatch]], other: Iterator[list[MicroBatch]], steps: int) -> None:
    """The next `steps` batches of both, bit for bit."""
    pairs = list(islice(zip(one, other, strict=False), steps))
    assert len(pairs) == steps
    for (mine,), (theirs,) in pairs:
        assert mine.batch.keys() == theirs.batch.keys()
        assert all(torch.equal(mine.batch[name], theirs.batch[name]) for name in mine.batch)
