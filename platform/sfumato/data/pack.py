"""Packing: any source of images into WebDataset shards, their indexes and a manifest.

Samples are laid down in the order of a hash of their keys. Shards of a folder sorted by class are then
mixed from the start, which the training order needs: it permutes whole shards and windows inside a stream,
and so never brings together samples that lie far apart. The same source gives the same bytes (under one
version of Pillow and its zlib, which make the PNGs).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data import index
from sfumato.data.config import SourceSettings, source_named
from sfumato.data.faults import Fault, FaultLog, ImageFault, OnError
from sfumato.data.images import MAX_PIXELS, bombs_refused, png
from sfumato.data.manifest import FILE, Manifest, ShardInfo
from sfumato.data.sources import Record, Source
from sfumato.data.tar import TarWriter
from sfumato.errors import DataError

SHARD_SIZE = 8192
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed, and what was skipped."""

    manifest: Manifest
    skipped: tuple[Fault, ...]


def pack(
    source: SourceSettings | str,
    dest: str | Path,
    *,
    overwrite: bool = False,
    on_error: OnError = "fail",
    max_errors: int = 100,
    max_pixels: int = MAX_PIXELS,
    shard_size: int = SHARD_SIZE,
    progress: OnProgress | None = None,
) -> PackReport:
    """Write `source` as a data set in the folder `dest`, which appears complete or not at all.

    `source` may also be a word that `config.source_named` knows. `progress(done, total)` is called after
    every sample. Raises DataError for a source that cannot be packed and for a `dest` that exists, unless
    `overwrite` is set and it holds a data set.
    """
    source = source_named(source) if isinstance(source, str) else source
    target = _target(dest, overwrite)
    log = FaultLog(on_error, max_errors)
    with bombs_refused():
        opened = source.open(max_pixels)
        for fault in opened.faults:
            log.add(fault)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-packing-", dir=target.parent))
            try:
                manifest = _write(opened, source, draft, shard_size, log, progress)
                draft.chmod(0o755)
                _put_in_place(draft, target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return PackReport(manifest, log.faults)


def _target(dest: str | Path, overwrite: bool) -> Path:
    if "://" in str(dest):
        raise DataError(f"{dest}: packing writes to a local folder; pack there, then copy the folder")
    target = Path(dest).expanduser().absolute()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not (target / FILE).is_file():
        raise DataError(f"{target}: exists and is not a packed data set; choose another place")
    if not overwrite:
        raise DataError(f"{target}: holds a data set already; choose another place, or overwrite it")
    return target


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename, so that no moment shows half a data set; an old one is deleted after it was replaced."""
    if target.exists() and any(target.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.replace(target, old)
        os.replace(draft, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(draft, target)


def _write(
    source: Source,
    settings: SourceSettings,
    folder: Path,
    shard_size: int,
    log: FaultLog,
    progress: OnProgress | None,
) -> Manifest:
    name = _file_stem(settings.name)
    shards: list[ShardInfo] = []
    samples = _readable(source, log, progress)
    while batch := _next_shard(samples, folder / f"{name}-{len(shards):06d}.tar", shard_size):
        built = index.build(folder, batch.name)
        built.save(folder, batch)
        shards.append(batch)
    if not shards:
        raise DataError(f"{source.description}: no usable image; the last: {log.faults[-1]}")
    manifest = Manifest(
        name=name,
        shards=tuple(shards),
        image=source.image,
        classes=tuple(source.classes),
        source=source.description,
        licence=settings.licence,
    )
    manifest.save(folder)
    return manifest


def _file_stem(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "data"


def _mixed(keys: Sequence[str]) -> list[int]:
    return sorted(
        range(len(keys)), key=lambda row: hashlib.blake2b(keys[row].encode(), digest_size=16).digest()
    )


def _readable(source: Source, log: FaultLog, progress: OnProgress | None) -> Iterator[tuple[str, Record]]:
    total = len(source.keys)
    for done, row in enumerate(_mixed(source.keys), start=1):
        try:
            yield source.keys[row], source.read(row)
        except ImageFault as fault:
            log.add(Fault(source.description, source.keys[row], str(fault)))
        if progress is not None:
            progress(done, total)


def _next_shard(samples: Iterator[tuple[str, Record]], path: Path, shard_size: int) -> ShardInfo | None:
    """Write up to `shard_size` samples; None (and no file) where none are left."""
    first = next(samples, None)
    if first is None:
        return None
    with path.open("xb") as file:
        tar, count = TarWriter(file), 0
        sample: tuple[str, Record] | None = first
        while sample is not None:
            _add(tar, *sample)
            count += 1
            sample = next(samples, None) if count < shard_size else None
        digest = tar.finish()
        file.flush()
        os.fsync(file.fileno())
    return ShardInfo(name=path.name, samples=count, bytes=tar.bytes, sha256=digest)


def _add(tar: TarWriter, key: str, record: Record) -> None:
    tar.add(f"{key}.png", png(record.pixels_HWC))
    if record.label is not None:
        tar.add(f"{key}.cls", str(record.label).encode())
    if record.caption is not None:
        tar.add(f"{key}.txt", record.caption.encode())
