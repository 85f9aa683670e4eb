"""Manifest and indexes for a WebDataset that exists, so that it can be trained on as it is.

Every tar is read once, by a task of its own: for its checksum, and for the keys, labels, captions and sizes
of its samples. What cannot be used is left out of the index; the tars are not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from sfumato.data import index
from sfumato.data.faults import Fault, FaultLog, ImageFault
from sfumato.data.images import Channels, bombs_refused, packed_look
from sfumato.data.layout import file_stem
from sfumato.data.manifest import FILE, ImageInfo, Manifest, ShardInfo, file_digest
from sfumato.data.samples import Fields, Row, SampleReader
from sfumato.data.sources import files
from sfumato.data.sources.webdataset import tars
from sfumato.data.tasks import OnProgress, Runner, Tally, in_process
from sfumato.errors import DataError

_TELL = 256
Size = tuple[int, int]


class _Sample(NamedTuple):
    row: Row
    size: Size
    grey: bool


@dataclass
class _Tar:
    """What a task found in one tar."""

    path: Path
    sha256: str
    samples: list[_Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The manifest that was written, the samples that were left out, and members that nothing looks at."""

    manifest: Manifest
    skipped: tuple[Fault, ...]
    ignored: dict[str, int]


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How an existing data set is to be understood."""

    shards: str = "*.tar"
    fields: Fields = field(default_factory=Fields)
    classes: tuple[str, ...] = ()
    channels: Literal["auto", 1, 3] = "auto"
    name: str | None = None
    licence: str = ""


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
    """Write manifest.json and an index a shard beside the tars of `folder`.

    With `dest`, they go into that folder, with links to the tars: for data that cannot be written to, or of
    which a part is to be a data set of its own. Raises DataError for tars that cannot be read as a whole,
    and for samples that cannot be used as `log` says.
    """
    if "://" in str(folder):
        raise DataError(
            f"{folder}: index the tars where they are local, then copy what it wrote to the others"
        )
    root = Path(folder).expanduser()
    place = root if dest is None else Path(dest).expanduser()
    if (place / FILE).exists() and not overwrite:
        raise DataError(f"{place}: has a {FILE} already; choose to overwrite it, or another place")
    paths = tars(root, options.shards)
    tasks = [_IndexTask(path, options.fields, max_pixels) for path in paths]
    found = list(run(tasks, Tally(progress, None)))
    for tar in found:
        _leave_out(tar, log, tar.faults)
    _refuse_twins(found, log)
    labelled = any(sample.row.label is not None for tar in found for sample in tar.samples)
    for tar in found:
        _refuse_other_sizes(tar, log)
        if labelled:
            bare = [sample.row.key for sample in tar.samples if sample.row.label is None]
            _leave_out(tar, log, [Fault(str(tar.path), key, "it has no label") for key in bare])
    manifest = _written(found, place, root, options, log)
    ignored = sum((tar.ignored for tar in found), Counter[str]())
    return IndexReport(manifest, log.faults, dict(sorted(ignored.items())))


@dataclass(frozen=True, slots=True)
class _IndexTask:
    path: Path
    fields: Fields
    max_pixels: int

    def __call__(self) -> Iterator[int | _Tar]:
        where = str(self.path)
        result = _Tar(self.path, file_digest(str(self.path.parent), self.path.name))
        reader = SampleReader(self.fields)
        told = count = 0
        with self.path.open("rb") as file, bombs_refused():
            for count, row in enumerate(reader.rows(file, self.path.stat().st_size, where), start=1):
                if isinstance(row, Fault):
                    result.faults.append(row)
                    continue
                file.seek(row.image.offset)
                try:
                    width, height, grey = packed_look(file.read(row.image.size), self.max_pixels)
                    result.samples.append(_Sample(row._replace(meta=None), (width, height), grey))
                except ImageFault as fault:
                    result.faults.append(Fault(where, row.key, str(fault)))
                if count - told >= _TELL:
                    yield count - told
                    told = count
        result.ignored = reader.ignored
        yield count - told
        yield result


def _leave_out(tar: _Tar, log: FaultLog, faults: Sequence[Fault]) -> None:
    for fault in faults:
        log.add(fault)
    gone = {fault.key for fault in faults}
    if faults is not tar.faults:
        tar.samples = [sample for sample in tar.samples if sample.row.key not in gone]


def _refuse_twins(found: Sequence[_Tar], log: FaultLog) -> None:
    first: dict[str, Path] = {}
    for tar in found:
        twins = []
        for sample in tar.samples:
            before = first.setdefault(sample.row.key, tar.path)
            if before is not tar.path:
                reason = f"its key has come before, in {before.name}"
                twins.append(Fault(str(tar.path), sample.row.key, reason))
        _leave_out(tar, log, twins)


def _refuse_other_sizes(tar: _Tar, log: FaultLog) -> None:
    """All images of a shard have one size: that of most of them."""
    sizes = Counter(sample.size for sample in tar.samples)
    if len(sizes) > 1:
        (usual, _), *_ = sizes.most_common(1)
        wanted = (
            f"where most of its shard are {usual[0]}x{usual[1]}: `sfumato pack` with a size makes them equal"
        )
        odd = [sample for sample in tar.samples if sample.size != usual]
        faults = [Fault(str(tar.path), s.row.key, f"{s.size[0]}x{s.size[1]}, {wanted}") for s in odd]
        _leave_out(tar, log, faults)


def _written(
    found: Sequence[_Tar], place: Path, root: Path, options: IndexOptions, log: FaultLog
) -> Manifest:
    labels, classes = files.numbered(
        [sample.row.label for tar in found for sample in tar.samples], options.classes, str(root)
    )
    channels = _channels(found, options)
    samples = Counter[Size]()
    for tar in found:
        samples[_size(tar)] += len(tar.samples)
    usual = _image(max(samples, key=lambda size: (samples[size], size)), channels)
    try:
        place.mkdir(parents=True, exist_ok=True)
        shards = []
        first = 0
        for tar in (tar for tar in found if tar.samples):
            last = first + len(tar.samples)
            numbers = [index.NO_LABEL] * (last - first) if labels is None else labels[first:last].tolist()
            shards.append(_save(tar, numbers, place, _image(_size(tar), channels), usual))
            first = last
        if not shards:
            raise DataError(f"{root}: no sample that can be used; the first: {log.faults[0]}")
        manifest = Manifest(
            name=file_stem(options.name or place.resolve().name),
            shards=tuple(shards),
            image=usual,
            classes=classes,
            captions=sum(sample.row.caption is not None for tar in found for sample in tar.samples),
            source=f"WebDataset {root.resolve().name}",
            licence=options.licence,
        )
        manifest.save(place)
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    return manifest


def _save(tar: _Tar, labels: Sequence[int], place: Path, image: ImageInfo, usual: ImageInfo) -> ShardInfo:
    shard = ShardInfo(
        name=tar.path.name,
        samples=len(tar.samples),
        bytes=tar.path.stat().st_size,
        sha256=tar.sha256,
        image=None if image == usual else image,
    )
    link = place / tar.path.name
    if not link.exists():
        link.symlink_to(tar.path.resolve())
    elif not link.samefile(tar.path):
        raise DataError(f"{link}: another file of that name lies there; choose another place")
    index.of_rows([sample.row for sample in tar.samples], labels).save(place, shard)
    return shard


def _size(tar: _Tar) -> Size:
    return tar.samples[0].size if tar.samples else (1, 1)


def _image(size: Size, channels: Channels) -> ImageInfo:
    return ImageInfo(channels=channels, height=size[1], width=size[0])


def _channels(found: Sequence[_Tar], options: IndexOptions) -> Channels:
    if options.channels != "auto":
        return options.channels
    kinds = {sample.grey: sample.row.key for tar in found for sample in tar.samples}
    if len(kinds) == 2:
        raise DataError(
            f"mixed channel counts: {kinds[True]} is grey, {kinds[False]} is coloured; set channels to 1 or 3"
        )
    return 1 if True in kinds else 3
