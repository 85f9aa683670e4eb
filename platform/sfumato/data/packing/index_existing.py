"""Manifest and indexes for an existing WebDataset, so that it can be trained on unchanged.

Every tar is read once, in its own task: for its checksum, and for the keys, labels, captions and sizes
of its samples. Samples that cannot be used are left out of the index; the tars are not touched.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sfumato.data.format import index
from sfumato.data.format.column_sources import ColumnSource
from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import Fault, FaultLog
from sfumato.data.format.images import Channels
from sfumato.data.format.manifest import FILE, ImageInfo, LeftOut, Manifest, ShardInfo
from sfumato.data.format.samples import Fields
from sfumato.data.packing import source_files
from sfumato.data.packing.further import Look, info_of, usual, with_columns
from sfumato.data.packing.layout import file_stem
from sfumato.data.packing.opt_out import NO_URLS, Removed, licences_of, read_lists
from sfumato.data.packing.sources.webdataset import check_pattern, tars
from sfumato.data.packing.tar_scan import ScanTask, Size, Tar
from sfumato.data.packing.tasks import OnProgress, Runner, Tally, in_process
from sfumato.data.storage.filesystems import check_bucket, filesystem, is_remote
from sfumato.data.storage.write import names_in
from sfumato.errors import DataError


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The written manifest, the samples left out, and members that nothing reads."""

    manifest: Manifest
    skipped: tuple[Fault, ...]
    ignored: dict[str, int]
    opted_out: tuple[tuple[str, str], ...] = ()
    """Key of a sample that an opt-out list names, and the kind of the entry."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How to interpret an existing data set."""

    shards: str = "*.tar"
    fields: Fields = field(default_factory=Fields)
    classes: tuple[str, ...] = ()
    channels: Literal["auto", 1, 3] = "auto"
    name: str | None = None
    licence: str = ""
    opt_out: tuple[str, ...] = ()
    """Lists of samples that must not be trained on: files, local or URIs."""


def make_index(
    folder: str | Path,
    options: IndexOptions,
    log: FaultLog,
    *,
    max_pixels: int,
    overwrite: bool = False,
    dest: str | Path | None = None,
    run: Runner = in_process,
    progress: OnProgress | None = None,
) -> IndexReport:
    """Write manifest.json and one index per shard next to the tars of `folder`, a folder or URI.

    With `dest`, they go into that folder, with links to the tars: for data that is read-only, or of
    which a part is to be its own data set (on a local disk: object storage has no links). Raises
    DataError for tars that cannot be read as a whole and, as `log` requires, for samples that cannot be used.
    """
    root, place = _places(folder, dest)
    if Manifest.exists(place) and not overwrite:
        raise DataError(
            f"{place}: has a {FILE} already; choose another place, or replace it with {log.wording.overwrite}"
        )
    tars_found = _tars(root, options.shards)
    opt_out = read_lists(options.opt_out)
    tasks = [ScanTask(where, name, options.fields, max_pixels, opt_out) for where, name in tars_found]
    found = list(run(tasks, Tally(progress, None)))
    for tar in found:
        _leave_out(tar, log, tar.faults)
    _refuse_twins(found, log)
    labelled = any(sample.row.label is not None for tar in found for sample in tar.samples)
    for tar in found:
        _refuse_other_sizes(tar, log)
        if labelled:
            bare = [sample.row.key for sample in tar.samples if sample.row.label is None]
            _leave_out(tar, log, [Fault(tar.path, key, "it has no label") for key in bare])
    for name, source in options.fields.columns.items():
        _refuse_other_looks(found, name, source, log)
    removed = Removed()
    for tar in found:
        for key, reason in tar.opted_out:
            removed.add(key, reason)
    left_out = removed.record(opt_out)
    if left_out is not None and removed.samples:  # other lists of as many samples give another set
        keys = "\0".join(key for key, _ in removed.samples)
        digest = hashlib.sha256(keys.encode()).hexdigest()
        left_out = left_out.model_copy(update={"keys_sha256": digest})
    manifest = _written(found, place, root, options, log, left_out)
    ignored = sum((tar.ignored for tar in found), Counter[str]())
    notes = (NO_URLS,) if opt_out.reads_urls and not any(tar.urls for tar in found) else ()
    return IndexReport(manifest, log.faults, dict(sorted(ignored.items())), tuple(removed.samples), notes)


def _places(folder: str | Path, dest: str | Path | None) -> tuple[str, str]:
    """Where the tars are and where the manifest goes. Raises DataError."""
    root = str(folder) if is_remote(str(folder)) else filesystem(str(folder))[1]
    if dest is None:
        return root, root
    if is_remote(root) or is_remote(str(dest)):
        raise DataError(
            f"{dest}: indexes go there with links to the tars, which object storage does not have; leave it "
            "out to put them next to the tars"
        )
    return root, filesystem(str(dest))[1]


def _tars(root: str, pattern: str) -> list[tuple[str, str]]:
    """Folder and name of the shards that a folder or URI means, sorted. Raises DataError."""
    if not is_remote(root):
        return [(str(path.parent), path.name) for path in tars(Path(root), pattern)]
    check_pattern(pattern)
    found = sorted((root, name) for name in names_in(root) if fnmatch.fnmatchcase(name, pattern))
    if not found:
        check_bucket(root)
        raise DataError(f"{root}: no file {pattern} there")
    return found


def _leave_out(tar: Tar, log: FaultLog, faults: Sequence[Fault]) -> None:
    for fault in faults:
        log.add(fault)
    gone = {fault.key for fault in faults}
    if faults is not tar.faults:
        tar.samples = [sample for sample in tar.samples if sample.row.key not in gone]


def _refuse_twins(found: Sequence[Tar], log: FaultLog) -> None:
    first: dict[str, str] = {}
    for tar in found:
        twins = []
        for sample in tar.samples:
            before = first.setdefault(sample.row.key, tar.name)
            if before != tar.name:
                reason = f"its key has appeared before, in {before}"
                twins.append(Fault(tar.path, sample.row.key, reason))
        _leave_out(tar, log, twins)


def _refuse_other_sizes(tar: Tar, log: FaultLog) -> None:
    """All images of a shard must have one size: that of most of them."""
    sizes = Counter(sample.size for sample in tar.samples)
    if len(sizes) > 1:
        (usual, _), *_ = sizes.most_common(1)
        wanted = (
            f"where most of its shard are {usual[0]}x{usual[1]}: `sfumato pack` with a size makes them equal"
        )
        odd = [sample for sample in tar.samples if sample.size != usual]
        faults = [Fault(tar.path, s.row.key, f"{s.size[0]}x{s.size[1]}, {wanted}") for s in odd]
        _leave_out(tar, log, faults)


def _refuse_other_looks(found: Sequence[Tar], name: str, source: ColumnSource, log: FaultLog) -> None:
    """All values of a column must have one type and shape; further images, only within a shard."""
    groups = [[tar] for tar in found] if source.kind == "image" else [list(found)]
    for group in groups:
        looks = [_size_alone(source, s.looks[name]) for tar in group for s in tar.samples if name in s.looks]
        if len(set(looks)) < 2:
            continue
        most = usual(looks)
        for tar in group:
            odd = [s for s in tar.samples if name in s.looks and _size_alone(source, s.looks[name]) != most]
            reason = f"its {name} is {{}}, where most are {most}"
            faults = [Fault(tar.path, s.row.key, reason.format(s.looks[name])) for s in odd]
            _leave_out(tar, log, faults)


def _size_alone(source: ColumnSource, look: Look) -> Look:
    """Images may be grey or coloured: reading converts them to the same channels."""
    return look._replace(shape=look.shape[1:]) if source.kind == "image" else look


def _columns(
    found: Sequence[Tar], options: IndexOptions, channels: Channels
) -> dict[str, list[tuple[ImageInfo, ColumnInfo]]]:
    """The entry of each column in each tar, with the size of the tar's images."""
    columns: dict[str, list[tuple[ImageInfo, ColumnInfo]]] = {}
    for name, source in options.fields.columns.items():
        parts = columns.setdefault(name, [])
        for tar in found:
            info = info_of(source, [sample.looks[name] for sample in tar.samples if name in sample.looks])
            if info is not None:
                parts.append((_image(_size(tar), channels), info))
        if not parts:
            raise DataError(f"column {name}: no sample has it ({source.member or source.field} is missing)")
    return columns


def _written(
    found: Sequence[Tar],
    place: str,
    root: str,
    options: IndexOptions,
    log: FaultLog,
    left_out: LeftOut | None,
) -> Manifest:
    labels, classes = source_files.numbered(
        [sample.row.label for tar in found for sample in tar.samples], options.classes, root
    )
    channels = _channels(found, options)
    samples = Counter[Size]()
    for tar in found:
        samples[_size(tar)] += len(tar.samples)
    most = _image(max(samples, key=lambda size: (samples[size], size)), channels)
    columns = _columns(found, options, channels)
    try:
        if not is_remote(place):
            Path(place).mkdir(parents=True, exist_ok=True)
        shards = []
        first = 0
        for tar in (tar for tar in found if tar.samples):
            last = first + len(tar.samples)
            numbers = [index.NO_LABEL] * (last - first) if labels is None else labels[first:last].tolist()
            shards.append(_save(tar, numbers, place, _image(_size(tar), channels), most, options))
            first = last
        if not shards:
            first_fault = f"; the first: {log.faults[0]}" if log.faults else ": the opt-out lists name all"
            raise DataError(f"{root}: no sample that can be used{first_fault}")
        manifest = Manifest(
            name=file_stem(options.name or _name(place)),
            shards=tuple(shards),
            image=most,
            classes=classes,
            captions=sum(sample.row.caption is not None for tar in found for sample in tar.samples),
            source=f"WebDataset {_name(root)}",
            licence=options.licence,
            licences=licences_of(Counter(sample.licence for tar in found for sample in tar.samples)),
            left_out=left_out,
        )
        manifest = with_columns(manifest, columns, place)
        manifest.save(place)
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    return manifest


def _name(place: str) -> str:
    return Path(filesystem(place)[1] if is_remote(place) else place).resolve().name


def _save(
    tar: Tar, labels: Sequence[int], place: str, image: ImageInfo, most: ImageInfo, options: IndexOptions
) -> ShardInfo:
    shard = ShardInfo(
        name=tar.name,
        samples=len(tar.samples),
        bytes=tar.bytes,
        sha256=tar.sha256,
        image=None if image == most else image,
    )
    if not is_remote(place):
        _link(Path(place) / tar.name, Path(tar.path))
    rows = [sample.row for sample in tar.samples]
    index.of_rows(rows, labels, options.fields.columns).save(place, shard)
    return shard


def _link(link: Path, tar: Path) -> None:
    if not link.exists():
        link.symlink_to(tar.resolve())
    elif not link.samefile(tar):
        raise DataError(f"{link}: another file has that name; choose another place")


def _size(tar: Tar) -> Size:
    return tar.samples[0].size if tar.samples else (1, 1)


def _image(size: Size, channels: Channels) -> ImageInfo:
    return ImageInfo(channels=channels, height=size[1], width=size[0])


def _channels(found: Sequence[Tar], options: IndexOptions) -> Channels:
    if options.channels != "auto":
        return options.channels
    kinds = {sample.grey: sample.row.key for tar in found for sample in tar.samples}
    if len(kinds) == 2:
        raise DataError(
            f"mixed channel counts: {kinds[True]} is grey, {kinds[False]} is coloured; set channels to 1 or 3"
        )
    return 1 if True in kinds else 3
