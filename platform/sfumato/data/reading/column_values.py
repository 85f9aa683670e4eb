"""All values of a column of texts, from the indexes alone: no shard is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from sfumato.data.format.columns import TEXT
from sfumato.data.format.index import ShardIndex, load_shard
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError


def texts_of(folder: str, manifest: Manifest, column: str) -> Iterator[str]:
    """The texts of all samples in the manifest's order; all that a sample has, an empty one if it has none.

    Raises ConfigError, in one line, if the data set has no such column of texts.
    """
    info = manifest.columns.get(column)
    if info is None and not (column == TEXT and manifest.captions):
        known = [*manifest.spec.columns]
        near = difflib.get_close_matches(column, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
        raise ConfigError(f"data.path: {folder} has no texts in a column {column!r}; {hint}")
    if info is not None and info.kind != "text":
        raise ConfigError(f"data.path: {folder}: {column!r} is of kind {info.kind}, wanted texts")
    for shard in manifest.shards:
        for texts in texts_in(load_shard(folder, shard), column):
            yield from texts


def texts_in(index: ShardIndex, column: str) -> Iterator[list[str]]:
    """The texts of every sample of a shard, one at least: an empty one if it has none."""
    if column in index.extra:
        yield from (texts or [""] for texts in index.extra[column].to_pylist())
    else:
        yield from ([caption or ""] for caption in index.captions.to_pylist())
