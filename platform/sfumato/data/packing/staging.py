"""The hidden folder next to a data set in which it is packed, and which an interrupted pack leaves behind.

Every finished shard has a record with the digest of its plan. The next pack into the same place keeps the
shards whose digest is the one that it needs and whose bytes still match the record.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from sfumato.core.drafts import folder_beside
from sfumato.data.format import index
from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import IN_PYTHON, Fault, Wording
from sfumato.data.format.manifest import FILE, Manifest, ShardInfo, file_digest
from sfumato.data.packing.layout import TRAIN, ShardPlan
from sfumato.data.packing.shard_writer import ShardResult
from sfumato.data.storage.filesystems import filesystem
from sfumato.errors import DataError

_FAULTS = TypeAdapter(tuple[Fault, ...])
_COLUMNS = TypeAdapter(dict[str, ColumnInfo])
_LICENCES = TypeAdapter(dict[str, int])
TAKEN = "exists and is not a packed data set; choose another place"
HOLDS_ONE = "already holds a data set; choose another place, or replace it with"


class Draft(Protocol):
    """A data set being packed."""

    @property
    def scratch(self) -> Path:
        """A folder for intermediate files that all tasks can see."""
        ...

    def place(self, split: str) -> str:
        """The folder or URI that the shards of a split are written to."""
        ...

    def finished(self, plans: Sequence[ShardPlan]) -> dict[ShardPlan, ShardResult]:
        """Usable results of an earlier pack. Called before the first shard is written."""
        ...

    def record(self, result: ShardResult) -> None:
        """Remember that a shard is finished."""
        ...

    def put_in_place(self, manifests: Mapping[str, Manifest]) -> None:
        """Complete the data set from the written shards: one manifest per split."""
        ...


def written(result: ShardResult) -> bytes:
    """The record of a finished shard."""
    content = {
        "digest": result.plan.digest,
        "info": None if result.info is None else result.info.model_dump(mode="json"),
        "captions": result.captions,
        "faults": _FAULTS.dump_python(result.faults, mode="json"),
        "columns": _COLUMNS.dump_python(dict(result.columns), mode="json"),
        "licences": dict(result.licences),
    }
    return json.dumps(content).encode()


def understood(record: bytes, plan: ShardPlan) -> ShardResult | None:
    """The result in a record, or None if it is damaged or of another plan."""
    try:
        content = json.loads(record)
        if content["digest"] != plan.digest:
            return None
        info = None if content["info"] is None else ShardInfo.model_validate(content["info"])
        faults = _FAULTS.validate_python(content["faults"])
        columns = _COLUMNS.validate_python(content["columns"])
        licences = _LICENCES.validate_python(content["licences"])
        return ShardResult(plan, info, int(content["captions"]), faults, columns, licences)
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


@dataclass(frozen=True, slots=True)
class LocalDraft:
    """`set/` becomes the data set; `records/` and `scratch/` are deleted by then."""

    folder: Path
    target: Path

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def place(self, split: str) -> str:
        """The folder that the shards of a split are written to."""
        return str(self.folder / "set" / split)

    def finished(self, plans: Sequence[ShardPlan]) -> dict[ShardPlan, ShardResult]:
        """Usable results of an earlier pack; everything else that it left is deleted."""
        found = {}
        for plan in plans:
            if (result := self._recorded(plan)) is not None:
                found[plan] = result
        good = {self._record(plan) for plan in found}
        for plan in found:
            place = Path(self.place(plan.split))
            good |= {place / plan.name, place / index.file_name(plan.name)}
        for folder in (self.folder / "records", self.folder / "set"):
            for path in [path for path in folder.rglob("*") if path.is_file() and path not in good]:
                path.unlink()
        return found

    def record(self, result: ShardResult) -> None:
        path = self._record(result.plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(written(result))
        os.replace(part, path)

    def put_in_place(self, manifests: Mapping[str, Manifest]) -> None:
        """Rename, so that half a data set is never visible; an old one is deleted once it is replaced."""
        for split, manifest in manifests.items():
            manifest.save(self.place(split))
        ready, target = self.folder / "set", self.target
        if target.exists() and any(target.iterdir()):
            old = folder_beside(target)
            os.replace(target, old)
            os.replace(ready, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(ready, target)

    def _record(self, plan: ShardPlan) -> Path:
        return self.folder / "records" / plan.split / f"{plan.name}.json"

    def _recorded(self, plan: ShardPlan) -> ShardResult | None:
        try:
            result = understood(self._record(plan).read_bytes(), plan)
            if result is not None and result.info is not None:
                self._check(plan, result.info)
            return result
        except (OSError, DataError):
            return None  # whatever the problem, the shard is packed again

    def _check(self, plan: ShardPlan, info: ShardInfo) -> None:
        folder = self.place(plan.split)
        index.load_shard(folder, info)
        if file_digest(folder, info.name) != info.sha256:
            raise DataError(f"{info.name}: changed since it was written")


def target_of(dest: str | Path, overwrite: bool, wording: Wording = IN_PYTHON) -> Path:
    """The local folder for a data set, if it may be written. Raises DataError."""
    target = Path(filesystem(str(dest))[1])
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not any((target / split / FILE).is_file() for split in ("", TRAIN)):
        raise DataError(f"{target}: {TAKEN}")
    if not overwrite:
        raise DataError(f"{target}: {HOLDS_ONE} {wording.overwrite}")
    return target


@contextmanager
def draft_of(target: Path) -> Iterator[LocalDraft]:
    """The draft of a data set in a local folder, held by this process alone.

    It is kept if an error or an interruption follows a finished shard, and deleted otherwise.
    Raises DataError if another process packs into the same place, or if nothing can be written.
    """
    folder = target.parent / f".{target.name}-packing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{target}: another process is packing into it") from None
        draft = LocalDraft(folder, target)
        try:
            yield draft
        except BaseException as error:
            if not _worth_keeping(draft, error):
                _remove(folder)
            raise
        _remove(folder)


def _worth_keeping(draft: LocalDraft, error: BaseException) -> bool:
    records = draft.folder / "records"
    finished = any(path.suffix == ".json" for path in records.rglob("*")) if records.is_dir() else False
    interrupted = not isinstance(error, DataError) and draft.scratch.is_dir()
    return finished or interrupted


def _remove(folder: Path) -> None:
    """Delete the folder and its content; failures are ignored."""
    shutil.rmtree(folder, ignore_errors=True)
