"""Sources in object storage: fetched to a local disk once, since packing reads samples in another order.

Fetched files keep their modification time, which shows whether a shard packed from them is still up to date.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pyarrow import fs

from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.tasks import OnProgress
from sfumato.data.storage.filesystems import above, check_bucket, explained, filesystem, is_remote, retried
from sfumato.data.storage.read import download
from sfumato.data.storage.write import entries
from sfumato.errors import DataError

_AT_ONCE = 16
_CLOCK_TICK_NS = 2 * 10**9
"""A file written in the same tick as it was fetched may have changed since and show the same time: object
storage reports whole seconds, and its clock is not ours."""


def local(
    config: SourceConfig, scratch: Path, progress: OnProgress | None, stage: Callable[[str], None]
) -> SourceConfig:
    """The source unchanged or, if its path is a URI, reading files fetched into `scratch`.

    `scratch` has to be on a disk that all workers see. Raises DataError if nothing can be fetched.
    """
    path = getattr(config, "path", "")
    if not is_remote(path):
        return config
    stage("fetch")
    if config.NEIGHBOURS and [name for name, _ in listed(path)] == [""]:
        folder, name = above(path)
        place = fetched(folder, scratch / "source", progress) / name
    else:
        place = fetched(path, scratch / "source", progress)
    return config.model_copy(update={"path": str(place)})


def fetched(uri: str, folder: Path, progress: OnProgress | None = None) -> Path:
    """A local copy below `folder`, of the same name, of a file or of everything in a folder.

    Existing files of the same size and time are kept.
    """
    found = listed(uri)
    if not found:
        check_bucket(uri)
        raise DataError(f"{uri}: no such file or folder")
    target = folder / PurePosixPath(filesystem(uri)[1]).name
    target.parent.mkdir(parents=True, exist_ok=True)
    total = sum(info.size for _, info in found)
    if total > (free := shutil.disk_usage(target.parent).free):
        raise DataError(
            f"{uri}: {total:,} bytes do not fit in the {free:,} free at {target.parent}; name a larger "
            "disk in TMPDIR, or index the data in place (`sfumato data index`)"
        )
    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for size in pool.map(lambda one: _fetch(uri, one[0], one[1], target), found):
            done += size
            if progress is not None:
                progress(done, total)
    return target


def listed(uri: str) -> list[tuple[str, fs.FileInfo]]:
    """Every file at a URI by its name below it, sorted; a file itself has the empty name.

    Raises DataError for names that would lead elsewhere on a disk.
    """
    place, root = filesystem(uri)
    try:
        itself = retried(lambda: place.get_file_info(root), uri)
    except OSError as error:
        raise explained(uri, "the source", error) from error
    if itself.type == fs.FileType.File:
        return [("", itself)]
    found = []
    for info in entries(uri):
        name = info.path.removeprefix(f"{root}/")
        if ".." in name.split("/") or "\\" in name or not name.isprintable():
            raise DataError(f"{uri}: {name!a}: its name leads out of the folder, or is not text")
        if info.type == fs.FileType.File:
            found.append((name, info))
    return found


def _fetch(uri: str, name: str, info: fs.FileInfo, target: Path) -> int:
    path = target / name if name else target
    size, time_ns = int(info.size), int(info.mtime_ns or 0)
    if path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (size, time_ns):
        return size
    draft = path.with_name(f"{path.name}.fetching")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, own = above(uri) if not name else (uri, name)
        started_ns = time.time_ns()
        download(folder, own, draft)
        settled = time_ns + _CLOCK_TICK_NS < started_ns
        kept_ns = time_ns if settled else time_ns - 1  # a time never reported, so it is fetched again
        os.utime(draft, ns=(kept_ns, kept_ns))
        os.replace(draft, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    return size
