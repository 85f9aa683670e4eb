"""Packs into object storage, which has no rename: shards go to their final place, the manifest comes last.

Without its manifest a folder is not a data set, so one appears complete or not at all. Next to the shards,
`_packing/` has a record of each finished one, from which an interrupted pack resumes, and the claim of the
process that packs. Object storage has no locks, but the later claim wins, and the other process
detects that before it writes a manifest.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.format import index
from sfumato.data.format.faults import IN_PYTHON, Wording
from sfumato.data.format.manifest import FILE, Manifest
from sfumato.data.packing.layout import TRAIN, VAL, ShardPlan
from sfumato.data.packing.shard_writer import ShardResult
from sfumato.data.packing.staging import HOLDS_ONE, TAKEN, understood, written
from sfumato.data.storage.filesystems import below, check_bucket, filesystem
from sfumato.data.storage.read import read_bytes, size_of
from sfumato.data.storage.write import entries, names_in, remove, remove_tree, write_bytes
from sfumato.errors import DataError

PACKING = "_packing"
_CLAIM = f"{PACKING}/claim"
_SPLITS = ("", VAL, TRAIN)
_AT_ONCE = 16
_OURS = (".tar", ".index.arrow", ".arrays.arrow", FILE)


@dataclass(frozen=True, slots=True)
class RemoteDraft:
    """A `staging.Draft` at a URI."""

    target: str
    scratch: Path
    token: str

    def place(self, split: str) -> str:
        return below(self.target, split)

    def finished(self, plans: Sequence[ShardPlan]) -> dict[ShardPlan, ShardResult]:
        """From here on the place holds no data set: one to be overwritten loses its manifest."""
        for split in _SPLITS:
            remove(self.place(split), FILE)
        root = filesystem(self.target)[1]
        known = {info.path.removeprefix(f"{root}/") for info in entries(self.target, PACKING)}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = dict(zip(plans, pool.map(lambda plan: self._recorded(plan, known), plans), strict=True))
        return {plan: result for plan, result in found.items() if result is not None}

    def record(self, result: ShardResult) -> None:
        self._check_claim()
        write_bytes(self.target, _record(result.plan), written(result))

    def put_in_place(self, manifests: Mapping[str, Manifest]) -> None:
        """Delete what an earlier set left, then write the manifests: that of `train` last."""
        self._check_claim()
        for split in _SPLITS:
            manifest = manifests.get(split)
            wanted = {name for shard in manifest.shards for name in _files(shard.name)} if manifest else set()
            stale = {name for name in names_in(self.place(split)) if name.endswith(_OURS)} - wanted
            for name in sorted(stale):
                remove(self.place(split), name)
        for split in _SPLITS:
            if split in manifests:
                manifests[split].save(self.place(split))
        remove_tree(self.target, PACKING)

    def _recorded(self, plan: ShardPlan, known: set[str]) -> ShardResult | None:
        name = _record(plan)
        if name not in known:
            return None
        try:
            result = understood(read_bytes(self.target, name), plan)
            if result is not None and result.info is not None:
                place, shard = self.place(plan.split), result.info
                index.load_shard(place, shard)
                if size_of(place, shard.name) != shard.bytes:
                    raise DataError(f"{place}: {shard.name}: changed since it was written")
        except DataError:
            result = None
        if result is None:  # other bytes will replace it: the record must not vouch for them
            remove(self.target, name)
        return result

    def _check_claim(self) -> None:
        held = size_of(self.target, _CLAIM) is not None and read_bytes(self.target, _CLAIM)
        if held != self.token.encode():
            raise DataError(f"{self.target}: another process has begun to pack into it")


def _files(shard: str) -> tuple[str, str]:
    return shard, index.file_name(shard)


def _record(plan: ShardPlan) -> str:
    return "/".join(part for part in (PACKING, plan.split, f"{plan.name}.json") if part)


@contextmanager
def remote_draft_of(dest: str, overwrite: bool, wording: Wording = IN_PYTHON) -> Iterator[RemoteDraft]:
    """The draft of a data set at a URI. Raises DataError if it may not be put there.

    Finished shards stay after an error or an interruption.
    """
    check_bucket(dest)
    _check_place(dest, overwrite, wording)
    token = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(8)}"
    write_bytes(dest, _CLAIM, token.encode())
    with tempfile.TemporaryDirectory(prefix="sfumato-packing-") as scratch:
        try:
            yield RemoteDraft(dest, Path(scratch), token)
        except BaseException:
            with suppress(DataError):
                if names_in(dest) == {PACKING} and _records(dest) == 0:
                    remove_tree(dest, PACKING)
            raise


def _check_place(dest: str, overwrite: bool, wording: Wording) -> None:
    if any(Manifest.exists(below(dest, split)) for split in _SPLITS):
        if not overwrite:
            raise DataError(f"{dest}: {HOLDS_ONE} {wording.overwrite}")
        return
    if (found := names_in(dest)) and PACKING not in found:
        raise DataError(f"{dest}: {TAKEN}")


def _records(dest: str) -> int:
    return sum(info.path.endswith(".json") for info in entries(dest, PACKING))
