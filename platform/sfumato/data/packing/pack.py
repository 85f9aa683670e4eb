"""Packs any source of images into WebDataset shards, their indexes and a manifest.

The source is listed, looked at and laid out in shards; then every shard is packed in its own task, in
this process or on a cluster. The same source gives the same bytes, wherever it is packed and however often
packing was interrupted (under one version of Pillow and its encoders).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sfumato.data.format.faults import IN_PYTHON, Fault, FaultLog, OnError, Wording
from sfumato.data.format.images import MAX_PIXELS, bombs_refused
from sfumato.data.format.manifest import ImageInfo, Manifest
from sfumato.data.packing import download
from sfumato.data.packing.further import with_columns
from sfumato.data.packing.layout import TRAIN, Layout, ShardPlan, about_channels, file_stem, layout
from sfumato.data.packing.opt_out import NO_URLS, OptOut, Removed, licences_of, read_lists
from sfumato.data.packing.recognition import source_named
from sfumato.data.packing.remote_staging import remote_draft_of
from sfumato.data.packing.scan import Seen, assumed, needed, survey
from sfumato.data.packing.shard_writer import ShardResult, ShardTask
from sfumato.data.packing.source import Opening, Source, SourceConfig
from sfumato.data.packing.staging import Draft, draft_of, target_of
from sfumato.data.packing.tasks import OnProgress, Runner, Tally, in_process
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import DataError

OnStage = Callable[[str], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed, and what was left out."""

    manifests: dict[str, Manifest]
    """By split: `train` and `val`, or the empty name if the source was not split."""
    skipped: tuple[Fault, ...]
    duplicates: tuple[tuple[str, str, int], ...] = ()
    """Key of a near duplicate that was left out, key of its original, bits in which they differ."""
    opted_out: tuple[tuple[str, str], ...] = ()
    """Name of a sample that an opt-out list names, and the kind of the entry."""
    kept: int = 0
    """Shards that an interrupted pack had already finished."""
    filtered: tuple[tuple[str, float], ...] = ()
    """Key of an image that the filter found and that was left out, and its score."""

    @property
    def manifest(self) -> Manifest:
        """Of the whole set, or of its training split."""
        return self.manifests.get("") or self.manifests[TRAIN]


@dataclass(frozen=True)
class _Pack:
    """One call of `pack`."""

    config: SourceConfig
    log: FaultLog
    max_pixels: int
    shard_size: int | None
    run: Runner
    progress: OnProgress | None
    stage: OnStage
    note: OnNote
    opt_out: OptOut
    kept: list[int] = field(default_factory=list)
    removed: Removed = field(default_factory=Removed)

    def report(self, draft: Draft) -> PackReport:
        source = self._listed(draft)
        seen, filtered = self._filtered(source, self._seen(source))
        if about := about_channels(source, self.config, seen):
            self.note(about)
        plan = layout(source, self.config, seen, self.max_pixels, self.shard_size)
        self._log(plan.faults)
        results = self._packed(source, plan, draft)
        found = None if self.config.filter is None else len(filtered)
        left_out = self.removed.record(self.opt_out, len(plan.duplicates), self.config.dedupe, found)
        manifests = {
            split: self._with_columns(
                split, manifest.model_copy(update={"left_out": left_out}), results, draft
            )
            for split, manifest in self._manifests(source, results).items()
        }
        draft.put_in_place(manifests)
        pairs = tuple((source.keys[twin.row], source.keys[twin.kept], twin.bits) for twin in plan.duplicates)
        return PackReport(
            manifests,
            self.log.faults,
            pairs,
            opted_out=tuple(self.removed.samples),
            kept=len(self.kept),
            filtered=filtered,
        )

    def _log(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self.log.add(fault)

    def _listed(self, draft: Draft) -> Source:
        self.stage("list")
        progress = self.progress or (lambda done, total: None)
        source = self.config.open(Opening(self.max_pixels, draft.scratch, self.run, progress, self.note))
        self._log(source.faults)
        if not len(source.keys):
            raise DataError(
                f"{source.description}: no sample that can be used; the first: {source.faults[0]}"
            )
        return source

    def _seen(self, source: Source) -> list[Seen]:
        if not needed(self.config, source):
            return assumed(source, self.config)
        self.stage("look")
        tally = Tally(self.progress, len(source.keys))
        seen, faults = survey(source, self.config, self.max_pixels, self.run, tally, self.opt_out)
        self._log(faults)
        if not seen:
            raise DataError(f"no usable image among {len(source.keys):,}; the first: {faults[0]}")
        return self._allowed(source, seen)

    def _allowed(self, source: Source, seen: list[Seen]) -> list[Seen]:
        """What no opt-out list names."""
        if self.opt_out.reads_urls and not any(one.has_url for one in seen):
            self.note(NO_URLS)
        left = []
        for one in seen:
            if one.opted_out is None:
                left.append(one)
            else:
                self.removed.add(source.name(one.row), one.opted_out)
        if not left:
            raise DataError(f"the opt-out lists leave none of {len(seen):,} images")
        return left

    def _filtered(self, source: Source, seen: list[Seen]) -> tuple[list[Seen], tuple[tuple[str, float], ...]]:
        """What the filter leaves, and the keys of what it found with their scores."""
        if self.config.filter is None:
            return seen, ()
        threshold = self.config.filter.threshold
        left = [one for one in seen if one.score is None or one.score < threshold]
        found = [one for one in seen if one.score is not None and one.score >= threshold]
        if not left:
            raise DataError(f"filter: finds all {len(seen):,} images at {threshold:g}; raise its threshold")
        return left, tuple((source.keys[one.row], round(one.score or 0.0, 4)) for one in found)

    def _packed(self, source: Source, plan: Layout, draft: Draft) -> list[ShardResult]:
        self.stage("pack")
        results = draft.finished(plan.shards)
        self.kept.extend(range(len(results)))
        tally = Tally(self.progress, sum(len(shard.rows) for shard in plan.shards))
        tally(sum(len(shard.rows) for shard in results))
        tasks = [self._task(source, shard, draft) for shard in plan.shards if shard not in results]
        for result in self.run(tasks, tally):
            self._log(result.faults)
            draft.record(result)
            results[result.plan] = result
        for shard in plan.shards:
            self._log(results[shard].faults)
        return [results[shard] for shard in plan.shards]

    def _task(self, source: Source, shard: ShardPlan, draft: Draft) -> ShardTask:
        limit = 0 if self.log.on_error == "fail" else self.log.max_errors
        place = draft.place(shard.split)
        return ShardTask(source.only(shard.rows), shard, place, limit, self.config.columns)

    def _manifests(self, source: Source, results: Sequence[ShardResult]) -> dict[str, Manifest]:
        images = Counter[ImageInfo]()
        for result in results:
            if result.info is not None and result.info.image is not None:
                images[result.info.image] += result.info.samples
        if not images:
            raise DataError(f"{source.description}: no usable image; the last: {self.log.faults[-1]}")
        usual = max(images, key=lambda image: (images[image], image.height, image.width))
        splits = dict.fromkeys(result.plan.split for result in results)
        return {split: self._manifest(source, split, results, usual) for split in splits}

    def _with_columns(
        self, split: str, manifest: Manifest, results: Sequence[ShardResult], draft: Draft
    ) -> Manifest:
        mine = [result for result in results if result.plan.split == split]
        parts = {
            name: [
                (result.info.image, result.columns[name])
                for result in mine
                if result.info is not None and result.info.image is not None and name in result.columns
            ]
            for name in self.config.columns
        }
        if missing := [name for name, held in parts.items() if not held]:
            source = self.config.columns[missing[0]]
            raise DataError(
                f"column {missing[0]}: no sample has it ({source.member or source.field} is missing)"
            )
        return with_columns(manifest, parts, draft.place(split))

    def _manifest(
        self, source: Source, split: str, results: Sequence[ShardResult], usual: ImageInfo
    ) -> Manifest:
        mine = [result for result in results if result.plan.split == split and result.info is not None]
        if not mine:
            raise DataError(f"{source.description}: no usable image in split {split}")
        infos = [result.info for result in mine if result.info is not None]
        shards = tuple(i.model_copy(update={"image": None if i.image == usual else i.image}) for i in infos)
        name = file_stem(self.config.name)
        return Manifest(
            name=f"{name}-{split}" if split else name,
            shards=shards,
            image=usual,
            classes=tuple(source.classes),
            captions=sum(result.captions for result in mine),
            split=split,
            source=source.description,
            licence=self.config.licence,
            licences=licences_of(sum((Counter(result.licences) for result in mine), Counter())),
        )


def pack(
    source: SourceConfig | str,
    dest: str | Path,
    *,
    overwrite: bool = False,
    on_error: OnError = "fail",
    max_errors: int = 100,
    max_pixels: int = MAX_PIXELS,
    shard_size: int | None = None,
    progress: OnProgress | None = None,
    stage: OnStage = lambda name: None,
    note: OnNote = lambda text: None,
    run: Runner = in_process,
    wording: Wording = IN_PYTHON,
) -> PackReport:
    """Write `source` as a data set in `dest`, a folder or URI, where it appears complete or not at all.

    `source` may also be a word that `recognition.source_named` knows. With `val` set, `dest` gets the folders
    `train` and `val`, each a data set. `shard_size` is in samples; None takes a power of two such that a
    shard holds up to 128 MiB of raw pixels. `stage(name)` announces list, look and pack, and
    `progress(done, total)` reports how far each is; `note(text)` is called with what the user should know.
    Errors advise settings in the words of `wording`.
    An interrupted pack leaves its finished shards in a hidden folder next to `dest` (in object storage, in
    `dest` itself), from which the next call takes them.

    Raises DataError for a source that cannot be packed and for a `dest` that exists, unless `overwrite` is
    set and it holds a data set.
    """
    config = source_named(source) if isinstance(source, str) else source
    log = FaultLog(on_error, max_errors, wording)
    with _draft(str(dest), overwrite, wording) as draft, bombs_refused():
        config = download.local(config, draft.scratch, progress, stage)
        opt_out = read_lists(config.opt_out)
        return _Pack(config, log, max_pixels, shard_size, run, progress, stage, note, opt_out).report(draft)


@contextmanager
def _draft(dest: str, overwrite: bool, wording: Wording) -> Iterator[Draft]:
    if is_remote(dest):
        with remote_draft_of(dest, overwrite, wording) as remote:
            yield remote
        return
    target = target_of(dest, overwrite, wording)
    new = [parent for parent in target.parents if not parent.exists()]
    try:
        with draft_of(target) as draft:
            yield draft
    finally:
        for parent in new:  # no empty parents stay behind
            if parent.is_dir() and not any(parent.iterdir()):
                os.rmdir(parent)
