"""Decides which checkpoints to keep: the newest, one every so many images, and the best by a metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from sfumato.errors import CheckpointError
from sfumato.training.store import CheckpointStore

BEST = "best.json"


class Saved(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def images(self) -> int: ...


def kept_names(found: Sequence[Saved], newest: int, every: int | None, best: str | None) -> set[str]:
    """Names of the checkpoints to keep among those `found` (newest first).

    With `every`, the first one at or after each multiple of so many images is kept as well.
    """
    kept = {checkpoint.name for checkpoint in found[:newest]}
    if every is not None:
        turns: dict[int, str] = {}
        for checkpoint in reversed(found):
            turns.setdefault(checkpoint.images // every, checkpoint.name)
        turns.pop(0, None)
        kept |= set(turns.values())
    return kept | ({best} if best is not None else set())


def mark_best(store: CheckpointStore, name: str, *, metric: str, value: float) -> None:
    """Mark the checkpoint of that name as the best so far, so that it is kept.

    Raises CheckpointError if there is no such checkpoint.
    """
    if not store.exists(f"{name}/manifest.json"):
        raise CheckpointError(f"{store.describe(name)} is not a complete checkpoint; it cannot be the best")
    store.write(BEST, json.dumps({"name": name, "metric": metric, "value": value}, indent=1).encode())


def best(store: CheckpointStore) -> str | None:
    """Name of the checkpoint last marked as the best, or None."""
    if not store.exists(BEST):
        return None
    content = json.loads(store.read(BEST))
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{store.describe(BEST)} is damaged: it names no checkpoint; remove it")
    return name
