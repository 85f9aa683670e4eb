"""Where columns are added: checks that a place is free, and brings a set to another place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sfumato.data.format import index
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.precompute import WORKING, Addition
from sfumato.data.storage.filesystems import check_bucket, filesystem, is_remote
from sfumato.data.storage.read import local_copy, size_of
from sfumato.data.storage.write import names_in, upload
from sfumato.errors import DataError


def check_destination(folder: str, manifest: Manifest, addition: Addition) -> None:
    """Raises DataError if the columns cannot go there: the place holds another set, or something else."""
    check_place(folder, manifest, addition.dest, addition.identity)
    if Manifest.exists(addition.dest):
        _check_free(Manifest.load(addition.dest), addition)


def check_place(folder: str, manifest: Manifest, dest: str, own: str) -> None:
    """Raises DataError if `dest` holds another set, or other files than those with `own` in the name."""
    if is_remote(dest):
        check_bucket(dest)
    if Manifest.exists(dest):
        there = Manifest.load(dest)
        if there.digest != manifest.digest:
            raise DataError(
                f"{dest}: holds another data set than {folder}; choose another place, or leave DEST out "
                "to add the columns to the set itself"
            )
        return
    place = None if is_remote(dest) else Path(filesystem(dest)[1])
    if place is not None and place.exists() and not place.is_dir():
        raise DataError(f"{dest}: exists and is not a folder; choose another place")
    found = set() if place is not None and not place.exists() else names_in(dest)
    expected = {name for shard in manifest.shards for name in (shard.name, index.file_name(shard.name))}
    expected |= {file.name for info in manifest.columns.values() for file in info.files.values()}
    other = sorted(name for name in found - expected if not name.startswith(WORKING) and own not in name)
    if other:
        raise DataError(f"{dest}: is not empty ({other[0]}); choose another place")


def _check_free(there: Manifest, addition: Addition) -> None:
    for name in addition.columns:
        info = there.columns.get(name)
        if info is not None and info.encoder != addition.name:
            raise DataError(
                f"{addition.dest}: has a column {name!r} already"
                + (f", of the encoder {info.encoder!r}" if info.encoder else "")
                + "; give the new one another name (--name)"
            )


def place_set(folder: str, manifest: Manifest, dest: str) -> None:
    """Link or copy all files of a set except its manifest to another place.

    Existing files are kept. Nothing happens if both places are the same.
    """
    if Manifest.exists(dest):
        return
    names = [name for shard in manifest.shards for name in (shard.name, index.file_name(shard.name))]
    names += [file.name for info in manifest.columns.values() for file in info.files.values()]
    names += [
        name
        for shard in manifest.shards
        if size_of(folder, name := f"{shard.name.removesuffix('.tar')}.arrays.arrow") is not None
    ]
    for name in names:
        if size_of(dest, name) != size_of(folder, name):
            _place(folder, name, dest)


def _place(folder: str, name: str, dest: str) -> None:
    with local_copy(folder, name) as path:
        if is_remote(dest):
            upload(dest, name, path)
            return
        target = Path(filesystem(dest)[1]) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{name}.part")
        draft.unlink(missing_ok=True)
        if is_remote(folder):
            shutil.copyfile(path, draft)
        else:
            _link(path.resolve(), draft)
        os.replace(draft, target)


def _link(path: Path, link: Path) -> None:
    """A hard link to the file, or a symbolic link if it is on another disk."""
    try:
        os.link(path, link)
    except OSError:
        link.symlink_to(path)
