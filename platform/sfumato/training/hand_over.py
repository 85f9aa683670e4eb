"""Hands a checkpoint from one run to another whose recipe differs in numbers, not in networks.

Population based training does this: a run continues from the weights, the optimizer's moments and the
averages of a better one, under its own recipe. It receives an ordinary checkpoint, which becomes its only
one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError
from sfumato.training.checkpoint import MANIFEST, CheckpointManifest, complete
from sfumato.training.store import CheckpointStore

_POLL_S = 0.25


def take_out(
    store: CheckpointStore,
    images: int,
    folder: Path,
    *,
    wait_s: float,
    going_on: Callable[[], bool] = lambda: True,
) -> int:
    """Copy the newest checkpoint at `images` or later into `folder`, with its manifest; return its images.

    Checkpoints are written while training continues, so the one that belongs to a report may not exist yet.
    This waits for it while `going_on()` and at most `wait_s` seconds, then takes the newest one.
    Raises CheckpointError if there is none.
    """
    end = time.monotonic() + wait_s
    while True:
        found = complete(store)
        late = time.monotonic() > end or not going_on()
        if found and (found[0].images >= images or late):
            try:
                return _copy(store, found[0].name, found[0].manifest, folder)
            except (CheckpointError, OSError):
                if late:  # otherwise it was pruned while being copied, and a newer one exists
                    raise
        elif late:
            raise CheckpointError(f"no checkpoint at {images:,} images to hand over")
        time.sleep(_POLL_S)


def put_in(
    store: CheckpointStore, folder: Path, *, token: str, recipe_digest: str, recipe: Mapping[str, Any]
) -> CheckpointManifest:
    """Make the checkpoint in `folder` the only one of a run with that recipe; return its new manifest.

    `token` becomes part of its name. If interrupted, the run has no checkpoint rather than a wrong one.
    """
    manifest = CheckpointManifest.model_validate_json((folder / MANIFEST).read_bytes())
    for name in store.folders():
        if name.startswith("images-"):
            store.remove(name)
    name = f"images-{manifest.images:012d}-{token}"
    with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
        staged = store.staging(name, Path(scratch))
        for file in manifest.files:
            shutil.copyfile(folder / file, staged / file)
        for rank in range(manifest.world_size):
            store.publish(name, staged, rank=rank)
    adopted = manifest.model_copy(update={"recipe_digest": recipe_digest, "recipe": dict(recipe)})
    store.write(f"{name}/{MANIFEST}", json.dumps(adopted.model_dump(), indent=1).encode())
    return adopted


def _copy(store: CheckpointStore, name: str, manifest: CheckpointManifest, folder: Path) -> int:
    sizes_and_sums = {file: (entry.bytes, entry.sha256) for file, entry in manifest.files.items()}
    with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
        source = store.materialise(name, sizes_and_sums, Path(scratch))
        for file in manifest.files:
            shutil.copyfile(source / file, folder / file)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return manifest.images
