"""A checkpoint goes on under the recipe that wrote it; another one is told the fields that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sfumato.errors import CheckpointError
from sfumato.training.checkpoint import Checkpoint
from sfumato.training.store import Store


def check_recipe(store: Store, checkpoint: Checkpoint, digest: str, recipe: Mapping[str, Any]) -> None:
    """Raises CheckpointError, with the fields that differ, where another recipe wrote the checkpoint."""
    if checkpoint.manifest.recipe_digest != digest:
        differ = differences(checkpoint.manifest.recipe, recipe)
        raise CheckpointError(
            f"{store.describe(checkpoint.name)} was written by another recipe ({'; '.join(differ)}); "
            "choose another train.checkpoint.uri or name, or train anew with --fresh"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The fields in which two recipes differ, dotted, with both values, the first one's first."""
    before, after = dict(_flat(theirs)), dict(_flat(ours))
    return [
        f"{key}: {before.get(key, 'absent')} there, {after.get(key, 'absent')} here"
        for key in sorted({**before, **after})
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_ABSENT = object()
