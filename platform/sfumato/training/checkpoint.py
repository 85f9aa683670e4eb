"""Checkpoints that are either complete or do not count.

Each checkpoint has its own folder: torch.distributed.checkpoint's files, written by all ranks in a
background thread, and `manifest.json` with sizes and checksums, written last. A folder without a manifest
is debris of a writer that died. Folder names are unique to the attempt that wrote them, so a worker that
outlives its driver cannot damage its successor's files. The protocol needs no rename, so it is the
same on a local disk and on object storage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from sfumato.core.identity import agrees, differences
from sfumato.core.validation import first_problem
from sfumato.errors import CheckpointError
from sfumato.training.ranks import Ranks
from sfumato.training.retention import best, kept_names
from sfumato.training.store import CheckpointStore

if TYPE_CHECKING:
    from sfumato.training import dcp  # loads torch.distributed.checkpoint: seconds, which drivers do not need

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """The contents of a checkpoint, which counts only if it has a manifest."""

    model_config = ConfigDict(extra="forbid")

    version: int = 1
    images: int
    step: int
    recipe_digest: str
    world_size: int
    strategy: str
    recipe: dict[str, Any] = {}
    """Every field that can change a number (`core.identity.counted`): it shows how another recipe differs,
    and lets a later version, whose digests differ, recognise its own checkpoint."""
    files: dict[str, FileEntry]


class Checkpoint(BaseModel):
    """A complete checkpoint in a store."""

    name: str
    manifest: CheckpointManifest

    @property
    def images(self) -> int:
        return self.manifest.images


def complete(store: CheckpointStore) -> list[Checkpoint]:
    """The complete checkpoints, newest first. Unreadable manifests are skipped with a warning."""
    found = []
    for name in store.folders():
        if not name.startswith("images-") or not store.exists(f"{name}/{MANIFEST}"):
            continue
        try:
            found.append(read_manifest(store, name))
        except CheckpointError as error:
            log.warning("%s; skipped", error)
    return sorted(found, key=lambda checkpoint: checkpoint.images, reverse=True)


def read_manifest(store: CheckpointStore, name: str) -> Checkpoint:
    """The checkpoint of that folder name. Raises CheckpointError when it is incomplete or unreadable."""
    path = f"{name}/{MANIFEST}"
    if not store.exists(path):
        raise CheckpointError(f"{store.describe(name)} is not a complete checkpoint: it has no {MANIFEST}")
    try:
        return Checkpoint(name=name, manifest=CheckpointManifest.model_validate_json(store.read(path)))
    except ValidationError as error:
        problem = first_problem(error, CheckpointManifest)
        raise CheckpointError(f"{store.describe(path)} cannot be read: {problem}") from error


def load(store: CheckpointStore, checkpoint: Checkpoint, scratch: Path) -> dcp.Stored:
    """The tensors of a checkpoint, for one process, after checking all files. Files of a remote store are
    copied to `scratch`.

    Raises CheckpointError naming the file that is missing or damaged.
    """
    store.materialise(checkpoint.name, sizes_and_sums(checkpoint), scratch)
    return tensors(store, checkpoint, scratch)


def tensors(store: CheckpointStore, checkpoint: Checkpoint, scratch: Path) -> dcp.Stored:
    """The tensors of a checkpoint that has been checked (`training.resume`), read on demand."""

    from sfumato.training import dcp

    def open_file(name: str) -> BinaryIO:
        if name not in checkpoint.manifest.files:
            raise CheckpointError(f"{store.describe(checkpoint.name)}: {name} is not one of its files")
        return store.open(checkpoint.name, name, scratch)

    return dcp.Stored(open_file, store.describe(checkpoint.name))


def sizes_and_sums(checkpoint: Checkpoint) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of a checkpoint's files by name."""
    return {name: (entry.bytes, entry.sha256) for name, entry in checkpoint.manifest.files.items()}


def check_recipe(store: CheckpointStore, checkpoint: Checkpoint, digest: str, recipe: BaseModel) -> None:
    """Raises CheckpointError, with the fields that differ, if another recipe wrote the checkpoint.

    If an earlier version wrote it, its digest may differ; then the recorded fields decide.
    """
    manifest = checkpoint.manifest
    if manifest.recipe_digest != digest and not (manifest.recipe and agrees(manifest.recipe, recipe)):
        differ = differences(manifest.recipe, recipe)
        raise CheckpointError(
            f"{store.describe(checkpoint.name)} was written by another recipe ({'; '.join(differ)}); "
            "choose another train.checkpoint.uri or name, or train from scratch with --fresh"
        )


class Writer:
    """Writes checkpoints of one attempt while training continues. Every rank has one; all call it alike."""

    def __init__(
        self,
        store: CheckpointStore,
        *,
        keep: int | None,
        recipe_digest: str,
        strategy: str,
        scratch: Path,
        recipe: Mapping[str, Any] | None = None,
        keep_every: int | None = None,
    ) -> None:
        self._store = store
        self._keep = keep
        self._keep_every = keep_every
        self._recipe = dict(recipe or {})
        self._recipe_digest = recipe_digest
        self._strategy = strategy
        self._scratch = scratch
        # A separate group: the writer's collectives must not mix with those of the training step.
        self._ranks = Ranks.current(apart=True)
        self._attempt = self._ranks.agree(secrets.token_hex(3))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[str] | None = None
        self._damaged: set[str] = set()
        self._turns: Counter[str] = Counter()
        self.failures: list[str] = []
        """Why checkpoints could not be written, oldest first."""
        self.reached = 0
        """Images at the newest checkpoint known to be whole: loaded, or written since."""

    def goes_on_from(self, images: int) -> None:
        """Note that training resumed at so many images (0: from the start).

        Complete checkpoints beyond that were found damaged. They stay until training has passed them, but
        they do not count among those to keep.
        """
        self.reached = images
        if self._ranks.leads:
            self._damaged = {found.name for found in complete(self._store) if found.images > images}

    def save(self, state: Mapping[str, Tensor], *, images: int, step: int) -> None:
        """Copy the state and start writing it; waits only for the previous checkpoint.

        A checkpoint that cannot be written (a full disk) leaves earlier ones in place and is added
        to `failures`; training continues.
        """
        self.wait()
        staged = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self._pending = self._thread.submit(self._write, staged, images, step)

    def wait(self) -> str | None:
        """Wait for the checkpoint under way; return its name, or None if there was none or it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            name = pending.result()
        except CheckpointError as error:
            self.failures.append(str(error))
            return None
        self.reached = int(name.split("-")[1])
        return name

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()

    def _write(self, state: dict[str, Tensor], images: int, step: int) -> str:
        from sfumato.training import dcp

        name = f"images-{images:012d}-{self._attempt}"
        self._turns[name] += 1
        if (turn := self._turns[name]) > 1:  # after a rollback: a complete checkpoint is never overwritten
            name += f"-{turn}"
        problem, entries = None, {}
        try:
            folder = self._store.staging(name, self._scratch)
        except OSError as error:
            problem = said(error)
        # All ranks decide alike: one without a folder would leave the others waiting during the write.
        if not any(self._ranks.gather(problem)):
            try:
                dcp.write(state, folder, self._ranks.group, distributed=self._ranks.world_size > 1)
                entries = self._store.publish(name, folder, rank=self._ranks.rank)
            except (OSError, RuntimeError, CheckpointError) as error:
                problem = said(error)
        results = self._ranks.gather((problem, entries))
        problems = [p for p, _ in results if p]
        if not problems and self._ranks.leads:
            problems = self._finish(name, images, step, {k: v for _, e in results for k, v in e.items()})
        problems = self._ranks.agree(problems)
        if problems:
            if self._ranks.leads:
                with _tolerated(f"remove the remains of {name}"):
                    self._store.remove(name)
            raise CheckpointError(f"checkpoint at {images:,} images was not written: {problems[0]}")
        if self._ranks.leads and self._keep is not None:
            with _tolerated("remove older checkpoints"):
                self._prune(self._keep)
        return name

    def _finish(self, name: str, images: int, step: int, files: dict[str, tuple[int, str]]) -> list[str]:
        manifest = CheckpointManifest(
            images=images,
            step=step,
            recipe_digest=self._recipe_digest,
            world_size=self._ranks.world_size,
            strategy=self._strategy,
            recipe=self._recipe,
            files={
                key: FileEntry(bytes=size, sha256=digest) for key, (size, digest) in sorted(files.items())
            },
        )
        try:
            text = json.dumps(manifest.model_dump(), indent=1)
            self._store.write(f"{name}/{MANIFEST}", text.encode())
        except OSError as error:
            return [said(error)]
        return []

    def _prune(self, keep: int) -> None:
        """Remove checkpoints that `retention.kept_names` does not name, and older debris of dead writers."""
        found = [saved for saved in complete(self._store) if saved.name not in self._damaged]
        kept = kept_names(found, keep, self._keep_every, best(self._store))
        oldest = min(checkpoint.name for checkpoint in found[:keep])
        for name in self._store.folders():
            if name.startswith("images-") and name not in kept and name < oldest:
                self._store.remove(name)


@contextlib.contextmanager
def _tolerated(what: str) -> Iterator[None]:
    """Log a failure and continue training: it does not affect whether the checkpoint counts."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        log.warning("checkpoints: cannot %s: %s", what, error)


def said(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else error}"
