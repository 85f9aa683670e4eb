"""`sfumato pack`: packs the source that the user names into a data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.validation import explain
from sfumato.data.format.faults import ON_COMMAND_LINE, OnError
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing import pack as packs
from sfumato.data.packing.pack import PackReport
from sfumato.data.packing.recognition import kind_of, place_of
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources import SOURCES
from sfumato.data.storage.filesystems import below
from sfumato.errors import ConfigError, DataError
from sfumato.runtime.cluster.pool import Pool
from sfumato.runtime.runs.display import Display

_LISTED = 20


def pack(
    source: str,
    dest: str,
    *,
    options: Mapping[str, Any],
    on_error: OnError,
    max_errors: int,
    overwrite: bool,
    display: Display,
    max_pixels: int = MAX_PIXELS,
    shard_size: int | None = None,
    workers: int | None = 1,
    left_out: Path | None = None,
) -> dict[str, Any]:
    """Pack `digits` or the source at a path; returns the outcome as plain data.

    `left_out` is a file for a list of what opt-out lists and the removal of duplicates left out.
    """
    settings = _source(source, options)
    with Pool(workers) as pool:
        report = packs.pack(
            settings,
            dest,
            overwrite=overwrite,
            on_error=on_error,
            max_errors=max_errors,
            max_pixels=max_pixels,
            shard_size=shard_size,
            progress=display.update,
            stage=display.stage,
            note=display.note,
            run=pool,
            wording=ON_COMMAND_LINE,
        )
    _tell(report, display)
    if left_out is not None:
        write_left_out(left_out, report)
    whole = report.manifest
    return {
        "folder": dest,
        "samples": sum(manifest.samples for manifest in report.manifests.values()),
        "shards": sum(len(manifest.shards) for manifest in report.manifests.values()),
        "bytes": sum(manifest.bytes for manifest in report.manifests.values()),
        "image": [whole.image.channels, whole.image.height, whole.image.width],
        "classes": list(whole.classes),
        "digest": whole.digest,
        "splits": {split: _split(dest, split, m) for split, m in report.manifests.items() if split},
        "captions": sum(manifest.captions for manifest in report.manifests.values()),
        "duplicates": [{"left_out": a, "kept": b, "bits": bits} for a, b, bits in report.duplicates],
        "filtered": [{"left_out": key, "score": score} for key, score in report.filtered],
        "kept_shards": report.kept,
        "opted_out": [{"left_out": name, "reason": reason} for name, reason in report.opted_out],
        "licences": dict(whole.licences),
        "skipped": [str(fault) for fault in report.skipped],
    }


def _tell(report: PackReport, display: Display) -> None:
    for fault in report.skipped[:_LISTED]:
        display.note(f"skipped {fault}")
    if len(report.skipped) > _LISTED:
        display.note(f"and {len(report.skipped) - _LISTED:,} more (--json lists all)")
    for left_out, kept, bits in report.duplicates[:_LISTED]:
        display.note(f"left out {left_out}: looks like {kept} ({bits} bits differ)")
    if len(report.duplicates) > _LISTED:
        display.note(f"and {len(report.duplicates) - _LISTED:,} more near duplicates (--json lists all)")
    for key, score in report.filtered[:_LISTED]:
        display.note(f"left out {key}: the filter scores it {score:.2f}")
    if len(report.filtered) > _LISTED:
        display.note(f"and {len(report.filtered) - _LISTED:,} more that it finds (--json lists all)")
    tell_opted_out(report.opted_out, display)
    if report.kept:
        display.note(f"{report.kept} shards were finished before")
    for split, manifest in report.manifests.items():
        into = f" in {split}" if split else ""
        display.done(f"{manifest.samples:,} images, {len(manifest.shards)} shards{into}")


def tell_opted_out(opted_out: Sequence[tuple[str, str]], display: Display) -> None:
    """How many samples opt-out lists left out, and the first."""
    counts = Counter(reason for _, reason in opted_out)
    if counts:
        said = ", ".join(f"{count:,} by {reason}" for reason, count in sorted(counts.items()))
        display.note(f"opt-out lists left out {said}; the first: {opted_out[0][0]}")


def write_left_out(path: Path, report: PackReport) -> None:
    """A JSON line for each sample that was left out: its name, why, and of a near duplicate its original.

    Raises DataError for a file that cannot be written.
    """
    rows: list[dict[str, Any]] = [{"left_out": name, "reason": reason} for name, reason in report.opted_out]
    rows += [{"left_out": key, "reason": "filter", "score": score} for key, score in report.filtered]
    rows += [
        {"left_out": key, "reason": "near duplicate", "kept": kept, "bits": bits}
        for key, kept, bits in report.duplicates
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _split(dest: str, split: str, manifest: Manifest) -> dict[str, Any]:
    return {"folder": below(dest, split), "samples": manifest.samples, "digest": manifest.digest}


def _source(source: str, options: Mapping[str, Any]) -> SourceConfig:
    kind = str(options.get("kind") or kind_of(source))
    try:
        settings = SOURCES.find(kind)
    except ConfigError as error:
        raise ConfigError(*(f"kind: {line}" for line in error.problems)) from None
    try:
        return settings.model_validate({**place_of(kind, source), **options, "kind": kind})
    except ValidationError as error:
        raise ConfigError(*explain(error, settings)) from None
